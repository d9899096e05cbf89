package relay

// didYouMean gives the end of an error sentence that names the word closest to
// a mistyped one, or "" when none is close.
func didYouMean(typed string, words []string) string {
	best, distance := "", 3
	for _, word := range words {
		// A short word is close to everything; a third of it may be wrong.
		if d := editDistance(typed, word); d < distance && d <= max(1, len(word)/3) {
			best, distance = word, d
		}
	}
	if best == "" || distance == 0 {
		return ""
	}
	return "; did you mean " + quote(best) + "?"
}

// editDistance counts the letters to insert, delete, replace or swap with their
// neighbour to get from a to b. Long words are far from everything.
func editDistance(a, b string) int {
	const far = 64
	if len(a) > far || len(b) > far {
		return far
	}
	var before, last, row [far + 1]int
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
