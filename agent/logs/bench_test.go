package logs

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// someSecrets are as many as the environment of an app has.
func someSecrets(n int) []string {
	r := rand.New(rand.NewPCG(1, 2))
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	var secrets []string
	for range n {
		b := make([]byte, 24+r.IntN(40))
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		secrets = append(secrets, string(b))
	}
	return secrets
}

// accessLog is output of lines of about 100 bytes.
func accessLog(size int) []byte {
	var b bytes.Buffer
	for n := 0; b.Len() < size; n++ {
		fmt.Fprintf(&b, "2026-03-04T05:06:%02d.123Z INFO  GET /orders/%d?page=%d 200 %d bytes in %d ms rid=%08x-%04x\n",
			n%60, n*7919, n%13, n*31%9000, n%300, n*2654435761, n%65536)
	}
	return b.Bytes()
}

// BenchmarkCopy is what passing an app's output on costs, as agent/run does it:
// from a pipe, with io.Copy; plain, and through a Tee.
func BenchmarkCopy(b *testing.B) {
	for _, tee := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "tee"}[tee], func(b *testing.B) {
			data := accessLog(64 << 10)
			file, err := os.CreateTemp(b.TempDir(), "")
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			to := io.Writer(file)
			if tee {
				to = New(Config{Secrets: someSecrets(30)}).Tee(Stdout, file)
			}
			read, write, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				defer write.Close()
				for n := range b.N {
					if n%256 == 0 {
						file.Truncate(0)
						file.Seek(0, 0)
					}
					write.Write(data)
				}
			}()
			if _, err := io.Copy(to, read); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkTee is what keeping costs beside the write itself.
func BenchmarkTee(b *testing.B) {
	for _, secrets := range []int{0, 30, 300} {
		for _, text := range []struct {
			name string
			data []byte
		}{
			{"access", accessLog(32 << 10)},
			{"json", bytes.Repeat([]byte(`{"level":"info","time":"2026-03-04T05:06:07Z","msg":"job done","queue":"mail","url":"https://example.com/a","ms":12}`+"\n"), 280)},
			{"secret", []byte(strings.Repeat("login with password=hunter22 and Authorization: Bearer abcdefghijklmnopqrstuvwxyz for postgres://u:pw@db/x\n", 300))},
		} {
			b.Run(fmt.Sprintf("%s/%d", text.name, secrets), func(b *testing.B) {
				tee := New(Config{Secrets: someSecrets(secrets)}).Tee(Stdout, io.Discard)
				b.SetBytes(int64(len(text.data)))
				b.ReportAllocs()
				for b.Loop() {
					tee.Write(text.data)
				}
			})
		}
	}
}
