package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/cjmd/cjmd/internal/config"
)

// listeners of the API. socket is nil when there is none; likewise tcp.
type listeners struct {
	unix []net.Listener
	tcp  []net.Listener
}

func (l listeners) close() {
	for _, x := range append(l.unix, l.tcp...) {
		_ = x.Close()
	}
}

// listen opens what the configuration asks for. Sockets handed over by systemd
// take the place of the configured ones, so that a restart refuses nobody.
func listen(cfg *config.Config) (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	inherited, err := activation.Listeners()
	if err != nil {
		return l, fmt.Errorf("cannot use the sockets of systemd: %w", err)
	}
	for _, x := range inherited {
		if x.Addr().Network() == "unix" {
			l.unix = append(l.unix, x)
			continue
		}
		l.tcp = append(l.tcp, x)
	}
	if len(l.unix) == 0 && cfg.Server.Socket != config.None {
		x, err := listenUnix(cfg.SocketPath(), cfg.Server.SocketMode, cfg.Server.SocketGroup)
		if err != nil {
			return l, err
		}
		l.unix = append(l.unix, x)
	}
	if len(l.tcp) == 0 && cfg.Server.Listen != config.None {
		x, err := net.Listen("tcp", cfg.Server.Listen)
		if err != nil {
			return l, fmt.Errorf("cannot listen on server.listen %s: %w", cfg.Server.Listen, err)
		}
		l.tcp = append(l.tcp, x)
	}
	if cfg.Server.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.Server.TLSCert, cfg.Server.TLSKey)
		if err != nil {
			return l, fmt.Errorf("cannot load server.tls_cert: %w", err)
		}
		for i, x := range l.tcp {
			l.tcp[i] = tls.NewListener(x, &tls.Config{
				Certificates: []tls.Certificate{cert},
				MinVersion:   tls.VersionTLS12,
				NextProtos:   []string{"http/1.1"},
			})
		}
	}
	return l, nil
}

// listenUnix replaces a socket file that nobody answers on. The state
// directory's lock is already held, so a live one belongs to somebody else.
func listenUnix(path, mode, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the socket's directory: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("cannot listen on %s: another program answers there; set server.socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old socket: %w", err)
	}
	bits, err := strconv.ParseUint(mode, 8, 12)
	if err != nil {
		return nil, fmt.Errorf("cannot use server.socket_mode %q: %w", mode, err)
	}
	// Bound under a private name and moved into place once mode and group are
	// right: nobody can connect in between.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old socket: %w", err)
	}
	x, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	x.SetUnlinkOnClose(false)
	fail := func(err error) (net.Listener, error) {
		_ = x.Close()
		_ = os.Remove(tmp)
		return nil, err
	}
	if err := os.Chmod(tmp, os.FileMode(bits)); err != nil {
		return fail(fmt.Errorf("cannot set the socket's mode: %w", err))
	}
	if group != "" {
		gid, err := groupID(group)
		if err != nil {
			return fail(err)
		}
		if err := os.Chown(tmp, -1, gid); err != nil {
			return fail(fmt.Errorf("cannot give the socket to group %s: %w", group, err))
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		return fail(fmt.Errorf("cannot put the socket in place: %w", err))
	}
	return &unixListener{UnixListener: x, path: path}, nil
}

// unixListener knows the path it was moved to, and removes it when closed.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	return errors.Join(l.UnixListener.Close(), os.Remove(l.path))
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("cannot use server.socket_group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}
