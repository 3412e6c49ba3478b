package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/config"
)

// listeners of the API; at least one.
type listeners struct {
	unix []net.Listener
	tcp  []net.Listener
	cert *certificate // of those of TCP; nil: no TLS
}

func (l listeners) close() {
	for _, x := range append(l.unix, l.tcp...) {
		_ = x.Close()
	}
}

// listen opens what the configuration asks for. Sockets handed over by systemd
// take the place of the configured ones, so that a restart refuses nobody; an
// address that somebody configured and that is not among them is told.
func listen(cfg *config.Config, log *zap.Logger) (l listeners, err error) {
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
		if x == nil { // what systemd handed over there is no socket
			return l, errors.New("cannot use the sockets of systemd: one of them is no stream socket")
		}
		if x.Addr().Network() == "unix" {
			l.unix = append(l.unix, x)
			continue
		}
		l.tcp = append(l.tcp, x)
	}
	l.tellOverridden(cfg, log)
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
	if len(l.unix)+len(l.tcp) == 0 {
		return l, errors.New("cannot serve: server.socket and server.listen are both none")
	}
	return l, l.secure(cfg.Server)
}

// secure refuses TCP addresses that must not be served, those of systemd too,
// which no check of the configuration has seen, and puts TLS in front of the
// others where there is a certificate.
func (l *listeners) secure(server config.Server) error {
	for _, x := range l.tcp {
		if err := server.SafeAddress(x.Addr().String()); err != nil {
			return fmt.Errorf("cannot serve: %w", err)
		}
	}
	if server.TLSCert == "" {
		return nil
	}
	l.cert = &certificate{}
	if err := l.cert.load(server); err != nil {
		return err
	}
	for i, x := range l.tcp {
		l.tcp[i] = l.cert.listener(x)
	}
	return nil
}

// tellOverridden warns of configured addresses that inherited sockets replace.
func (l listeners) tellOverridden(cfg *config.Config, log *zap.Logger) {
	for _, x := range []struct {
		key, want string
		have      []net.Listener
	}{
		{"server.socket", cfg.SocketPath(), l.unix},
		{"server.listen", cfg.Server.Listen, l.tcp},
	} {
		if len(x.have) == 0 || slices.ContainsFunc(x.have, func(h net.Listener) bool { return h.Addr().String() == x.want }) {
			continue
		}
		log.Warn("not listening where the configuration says: systemd's socket unit decides; change it there (systemctl edit cjmd.socket)",
			zap.String("key", x.key), zap.String("configured", x.want), zap.Stringer("listening", x.have[0].Addr()))
	}
}

// listenUnix replaces a socket file that nobody answers on. The state
// directory's lock is already held, so a live one belongs to somebody else.
func listenUnix(path, mode, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the socket's directory: %w", err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("cannot listen on %s: there is a file of that name that is no socket", path)
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
	// Bound for us alone and moved into place once mode and group are right:
	// nobody can connect in between. The mask is the whole process', but nothing
	// that others should read is made while the daemon starts.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace the old socket: %w", err)
	}
	mask := syscall.Umask(0o077)
	x, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	syscall.Umask(mask)
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

// unixListener knows the path it was moved to, and removes it when closed; once:
// by the second time another daemon may have put its own there.
type unixListener struct {
	*net.UnixListener
	path string
	once sync.Once
	err  error
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.err = err
		}
		l.err = errors.Join(l.err, l.UnixListener.Close())
	})
	return l.err
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("cannot use server.socket_group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}
