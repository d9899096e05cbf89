package egress

import (
	"net/http"

	"github.com/posternhq/postern/protocol/policy"
)

// cleanRequest drops from an app's request what is not for its destination. The relay
// does the same; a request that is sent from here does not pass it.
func cleanRequest(h http.Header) {
	policy.CleanRequest(h)
	if len(h["Upgrade"]) == 0 {
		delete(h, "Connection") // which ReverseProxy has written for the Upgrade
	}
}

// cleanAnswer drops from the answer of a destination that was called from here what it
// cannot tell for us.
func cleanAnswer(resp *http.Response) error {
	if routeOf(resp.Request.Context()).direct {
		policy.CleanAnswer(resp.Header)
	} else if resp.Close && resp.Request.ContentLength != 0 {
		// The relay wants no more of the upload, and takes nothing after it.
		resp.Header.Set("Connection", "close")
	}
	return nil
}
