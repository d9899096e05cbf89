package provider

import (
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

const gitlabToken = "X-Gitlab-Token" // the secret itself

// verifyGitLab checks the secret token that GitLab sends as it is, or the
// signature of newer versions, which is Standard Webhooks' under a signing token
// ("whsec_…"). A request with a signature that we have a signing token for must
// be signed well: falling back to the weaker check would make the better one
// useless.
func verifyGitLab(r request) relay.Verdict {
	if signsGitLab(r) {
		return standardScheme.verify(r)
	}
	token, problem := single(r.in.Header, gitlabToken)
	if problem != "" {
		return refuse("%s", problem)
	}
	if len(r.ep.Secrets) == 0 {
		return refuse("the endpoint has no secret to check with")
	}
	if !isOneOf(token, r.ep.Secrets) {
		return refuse("the token in %s is none of the endpoint's secrets (%d tried)", gitlabToken, len(r.ep.Secrets))
	}
	return relay.Verdict{OK: true, Verified: true}
}

func signsGitLab(r request) bool {
	if len(r.in.Header.Values(standardScheme.header)) == 0 {
		return false
	}
	for _, secret := range r.ep.Secrets {
		if strings.HasPrefix(secret.Reveal(), sharedKey) {
			return true
		}
	}
	return false
}

// resignGitLab has nothing to do for a plain token: it covers nothing and stays
// good.
func resignGitLab(r request, url string, now time.Time) ([]relay.Field, error) {
	if !signsGitLab(r) {
		return nil, nil
	}
	return standardScheme.resign(r, url, now)
}
