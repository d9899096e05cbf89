// Package deploy tests the files of the folder deploy: the samples that put a
// relay on a machine or a platform.
//
//	front     nginx and Caddy with the sample files, a relay behind them, everything
//	          through them: tunnels, webhooks, streams, WebSockets
//	units     systemd's own opinion of the units; the relay, started as they say
//	images    the Dockerfile, parsed as BuildKit does, its commands run by hand
//	chart     the Helm chart, rendered by Helm, decoded strictly as Kubernetes does
//	schemas   files of platforms that cannot be asked here, against their documented
//	          keys (testdata; each says where its facts are from)
//	names     what all files say about this product: variables, paths, images, graces
//
// The one rule to know: a fact about Postern is asked of the binaries, never
// written down here a second time.
package deploy
