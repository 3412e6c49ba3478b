package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/cjmd/cjmd/internal/config"
)

// certificate is the one that TCP connections are answered with. A reload
// replaces it for the next connections; those that are open go on.
type certificate struct {
	current atomic.Pointer[tls.Certificate]
}

// load reads the files that the configuration names. On an error the one before
// stays in force.
func (c *certificate) load(cfg config.Server) error {
	pair, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return fmt.Errorf("cannot load server.tls_cert and server.tls_key: %w", err)
	}
	c.current.Store(&pair)
	return nil
}

// listener answers in TLS on x.
func (c *certificate) listener(x net.Listener) net.Listener {
	return tls.NewListener(x, &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
	})
}
