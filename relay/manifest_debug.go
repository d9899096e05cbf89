package relay

import "time"

// checkDebug checks apps.<app>.debug.
func (r *manifestReader) checkDebug(p place) bool {
	f := r.fields(p, "allow", "approval", "max_duration")
	for _, item := range r.items(f["allow"], maxListed) {
		r.choice(item, "shell", "exec", "forward", "files", "logs", "profile")
	}
	r.choice(f["approval"], "none", "required")
	r.duration(f["max_duration"], 0, time.Second, 24*time.Hour)
	return p.given()
}
