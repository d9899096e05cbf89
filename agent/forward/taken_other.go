//go:build !linux

package forward

import (
	"net"

	"github.com/posternhq/postern/protocol"
)

// takenOf is nil: this system does not tell.
func takenOf(net.Conn) protocol.Taken { return nil }
