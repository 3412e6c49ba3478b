package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/internal/config"
)

// target is one place where a daemon may be.
type target struct {
	socket    string // path of a Unix socket, or "" for TCP
	url       string // base URL for TCP
	token     string
	tokenFile string // read when token is empty; missing is fine
}

func (t target) String() string {
	if t.socket != "" {
		return t.socket
	}
	return t.url
}

// Where the system service of a packaged cjmd is.
const (
	serviceSocket = "/run/cjmd/cjmd.sock"
	serviceState  = "/var/lib/cjmd"
	adminToken    = "admin.token" // in the state directory, written by the daemon's first start
)

// targets lists where to look, best first. Something named by a flag or the
// environment is the only place; a flag wins over the environment.
func (a *app) targets() ([]target, error) {
	token := a.token
	if token == "" && a.tokenFile != "" {
		read, err := readToken(a.tokenFile)
		if err != nil {
			return nil, &hintError{err, "check --token-file"}
		}
		token = read
	}
	if token == "" {
		token = a.getenv("CJMD_TOKEN")
	}
	host, socket := a.host, a.socket
	if host != "" && socket != "" {
		return nil, usagef("cannot use both --host and --socket")
	}
	if host == "" && socket == "" {
		host, socket = a.getenv("CJMD_HOST"), a.getenv("CJMD_SOCKET")
		if socket != "" {
			host = "" // the socket is the nearer one
		}
	}
	mine := a.configured()
	switch {
	case socket != "":
		return []target{{socket: socket, token: token}}, nil
	case host != "":
		base, err := baseURL(host)
		if err != nil {
			return nil, err
		}
		t := target{url: base, token: token}
		if loopback(base) {
			t.tokenFile = filepath.Join(mine.StateDir, adminToken)
		}
		return []target{t}, nil
	}
	var out []target
	for _, s := range []string{mine.Server.Socket, serviceSocket} {
		if s != config.None && s != "" && !slices.ContainsFunc(out, func(t target) bool { return t.socket == s }) {
			out = append(out, target{socket: s, token: token})
		}
	}
	for _, state := range []string{mine.StateDir, serviceState} {
		base, err := baseURL(mine.Server.Listen)
		if err != nil || mine.Server.Listen == config.None {
			continue
		}
		t := target{url: base, token: token, tokenFile: filepath.Join(state, adminToken)}
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out, nil
}

// configured is the configuration that a daemon of this user would have. One
// that cannot be read is the daemon's to complain about: the defaults stand in
// for it, and what was tried is listed when nothing answers.
func (a *app) configured() *config.Config {
	env := slices.DeleteFunc(slices.Clone(a.env), func(kv string) bool {
		return strings.HasPrefix(kv, "CJMD_HOST=") || strings.HasPrefix(kv, "CJMD_SOCKET=") || strings.HasPrefix(kv, "CJMD_TOKEN=")
	})
	if cfg, err := config.Load(config.Options{Env: env, UID: func() int { return a.uid }}); err == nil {
		return cfg
	}
	dirs, err := config.DefaultDirs(a.getenv, a.uid)
	if err != nil { // no HOME: only the service can be found
		return &config.Config{StateDir: serviceState, Server: config.Server{Socket: serviceSocket, Listen: config.None}}
	}
	cfg := config.Defaults(dirs)
	cfg.Server.Socket = filepath.Join(dirs.Run, "cjmd.sock")
	return &cfg
}

// baseURL makes host:port, host or a URL a base URL.
func baseURL(host string) (string, error) {
	if !strings.Contains(host, "://") {
		host = "http://" + host
	}
	u, err := url.Parse(host)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" && u.Path != "/" {
		return "", usagef("%q is no address: write host:port or http://host:port", host)
	}
	if u.Port() == "" && u.Scheme == "http" {
		u.Host = net.JoinHostPort(u.Hostname(), "8765")
	}
	return u.Scheme + "://" + u.Host, nil
}

func loopback(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

func readToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// connect finds the daemon: the first target where something listens.
func (a *app) connect(ctx context.Context) (*client.API, error) {
	targets, err := a.targets()
	if err != nil {
		return nil, err
	}
	var tried []error
	for _, t := range targets {
		err := t.probe(ctx)
		if err == nil {
			return t.open(a)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		tried = append(tried, &unreachableError{t.String(), err})
	}
	return nil, unreachable(targets, tried)
}

// unreachable chooses what to say when nothing answered.
func unreachable(targets []target, tried []error) error {
	for i, err := range tried {
		if errors.Is(err, fs.ErrPermission) {
			return &hintError{err, "you may not use that socket: join its group (see ls -l " + targets[i].String() + ") and log in again, or use --host with a token"}
		}
	}
	const start = "is it running? start it with: cjmd   (or: systemctl start cjmd)"
	if len(tried) == 1 {
		return &hintError{tried[0], start}
	}
	places := make([]string, len(targets))
	for i, t := range targets {
		places[i] = t.String()
	}
	return &hintError{&unreachableError{strings.Join(slices.Compact(places), ", "), errors.New("nothing listens there")}, start}
}

// probe opens and closes a connection; nothing is sent.
func (t target) probe(ctx context.Context) error {
	conn, err := t.dial(ctx)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Err != nil {
			err = op.Err // without the address, which is told before it
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return errors.New("there is no such socket")
		case errors.Is(err, syscall.ECONNREFUSED):
			return errors.New("nothing listens there")
		}
		return err
	}
	return conn.Close()
}

func (t target) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	if t.socket != "" {
		return d.DialContext(ctx, "unix", t.socket)
	}
	u, err := url.Parse(t.url)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
}

// open makes the client for a target.
func (t target) open(a *app) (*client.API, error) {
	token := t.token
	if token == "" && t.tokenFile != "" {
		read, err := readToken(t.tokenFile)
		switch {
		case err == nil:
			token = read
		case !errors.Is(err, fs.ErrNotExist):
			// Without it the daemon answers 401; the reason is here.
			fmt.Fprintln(a.talk.w, harmless(err.Error(), false))
		}
	}
	return client.New(client.Options{Socket: t.socket, BaseURL: t.url, Token: token, UserAgent: "cjm-ctl/" + version})
}
