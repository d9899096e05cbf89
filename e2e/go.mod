// The end-to-end checks and the bench harness are a module of their own, so
// that whatever they need as a peer never enters the product's module.
module github.com/posternhq/postern/e2e

go 1.26.0

replace github.com/posternhq/postern => ../

require (
	github.com/coder/websocket v1.8.15
	github.com/google/go-github/v84 v84.0.0
	github.com/posternhq/postern v0.0.0-00010101000000-000000000000
	github.com/stripe/stripe-go/v85 v85.0.0
)

require (
	github.com/google/go-querystring v1.2.0 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)
