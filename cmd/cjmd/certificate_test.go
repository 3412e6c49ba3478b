package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cjmd/cjmd/internal/config"
)

// selfSigned writes a certificate for the loopback address, with this number.
func selfSigned(t *testing.T, server config.Server, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "cjmd"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		server.TLSCert: {Type: "CERTIFICATE", Bytes: der}, server.TLSKey: {Type: "EC PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificate_IsReplacedWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := config.Server{TLSCert: filepath.Join(dir, "cert.pem"), TLSKey: filepath.Join(dir, "key.pem")}
	selfSigned(t, server, 1)
	var c certificate
	if err := c.load(server); err != nil {
		t.Fatal(err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := c.listener(plain)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	defer func() { l.Close(); <-done }()
	serial := func() int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Fatalf("certificate %d", n)
	}
	selfSigned(t, server, 2)
	if err := c.load(server); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 2 {
		t.Errorf("certificate %d after a reload", n)
	}
	if err := os.WriteFile(server.TLSKey, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.load(server); err == nil || !strings.Contains(err.Error(), "server.tls_key") {
		t.Errorf("a broken key: %v", err)
	}
	if n := serial(); n != 2 {
		t.Errorf("certificate %d after a reload that failed", n)
	}
}

// What systemd hands over was not seen by the check of the configuration.
func TestListen_RefusesAnUnsafeSocketOfSystemd(t *testing.T) {
	x, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Skip(err)
	}
	defer x.Close()
	l := listeners{tcp: []net.Listener{x}}
	if err := l.secure(config.Server{}); err == nil || !strings.Contains(err.Error(), "server.tls_cert") {
		t.Errorf("got %v", err)
	}
	if err := l.secure(config.Server{InsecureBind: true, InsecureBindReally: true}); err != nil {
		t.Errorf("said twice: %v", err)
	}
}
