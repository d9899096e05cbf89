package conceal

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

const (
	tokenVariable = "POSTERN_TOKEN"

	// pipeVariable is the number of the pipe that holds the token. A launcher may set it
	// as well, and spare the agent its second start: postern run 3< <(…) with
	// POSTERN_TOKEN_FD=3.
	pipeVariable = "POSTERN_TOKEN_FD"
)

// maxToken is how long a token may be, in bytes: what a pipe takes without anybody
// reading, however little memory the kernel has left for pipes (PIPE_BUF).
const maxToken = 4096

// Token returns the token, empty when there is none, and takes it out of the
// environment. On Linux it does not return the first time: the program starts again.
//
// The warning says what could not be done. It is worth a line in the log and no
// reason to stop, and never contains the token.
func Token() (token string, warning error) {
	concealed := undumpable()
	number, handed := os.LookupEnv(pipeVariable)
	token = os.Getenv(tokenVariable)
	os.Unsetenv(pipeVariable)
	os.Unsetenv(tokenVariable)
	switch {
	case handed:
		// Never a third start, whatever is in the environment.
		received, err := receive(number)
		if err == nil {
			return received, concealed
		}
		return token, errors.Join(concealed, fmt.Errorf("take the token from %s=%q: %w", pipeVariable, shown(number), err))
	case token == "":
		return "", concealed
	}
	if err := again(token); err != nil {
		return token, errors.Join(concealed, fmt.Errorf("hide the token from the app: %w", err))
	}
	return token, concealed
}

// shown is the value of a variable fit for a log line. Somebody may have put the token
// itself where its pipe should be.
func shown(value string) string {
	if len(value) > 10 || strings.Trim(value, "-0123456789") != "" {
		return "…"
	}
	return value
}
