package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/client"
)

func TestTargets_Order(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	state := filepath.Join(home, ".local/state/cjmd")
	tokenFile := filepath.Join(home, "token")
	if err := os.WriteFile(tokenFile, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		env     []string
		flags   app
		uid     int
		want    []target
		wantErr string
	}{
		{name: "by itself", uid: 1000, env: []string{"XDG_RUNTIME_DIR=/run/user/1000"}, want: []target{
			{socket: "/run/user/1000/cjmd/cjmd.sock"}, {socket: "/run/cjmd/cjmd.sock"},
			{url: "http://127.0.0.1:8765", tokenFile: state + "/admin.token"},
			{url: "http://127.0.0.1:8765", tokenFile: "/var/lib/cjmd/admin.token"},
		}},
		{name: "root", uid: 0, env: []string{"CJMD_TOKEN=t"}, want: []target{
			{socket: "/run/cjmd/cjmd.sock", token: "t"},
			{url: "http://127.0.0.1:8765", token: "t", tokenFile: "/var/lib/cjmd/admin.token"},
		}},
		{name: "configured daemon", uid: 1000, env: []string{"CJMD_STATE_DIR=/srv/x", "CJMD_SERVER_LISTEN=none"}, want: []target{
			{socket: "/srv/x/run/cjmd.sock"}, {socket: "/run/cjmd/cjmd.sock"},
		}},
		{name: "socket of the environment", uid: 1000, env: []string{"CJMD_SOCKET=/a", "CJMD_HOST=h:1"}, want: []target{{socket: "/a"}}},
		{name: "flag beats environment", uid: 1000, env: []string{"CJMD_SOCKET=/a"}, flags: app{host: "box:9000"}, want: []target{{url: "http://box:9000"}}},
		{name: "default port", uid: 1000, flags: app{host: "box"}, want: []target{{url: "http://box:8765"}}},
		{name: "tls", uid: 1000, flags: app{host: "https://box"}, want: []target{{url: "https://box"}}},
		{name: "loopback host", uid: 1000, flags: app{host: "[::1]:9"}, want: []target{{url: "http://[::1]:9", tokenFile: state + "/admin.token"}}},
		{name: "token file", uid: 1000, env: []string{"CJMD_TOKEN=t"}, flags: app{socket: "/a", tokenFile: tokenFile}, want: []target{{socket: "/a", token: "from-file"}}},
		{name: "token flag", uid: 1000, flags: app{socket: "/a", token: "flag", tokenFile: tokenFile}, want: []target{{socket: "/a", token: "flag"}}},
		{name: "both", flags: app{host: "a", socket: "b"}, wantErr: "cannot use both"},
		{name: "path", flags: app{host: "http://box/x"}, wantErr: "is no address"},
		{name: "scheme", flags: app{host: "ftp://box"}, wantErr: "is no address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := &c.flags
			a.env, a.uid = append([]string{"HOME=" + home}, c.env...), c.uid
			got, err := a.targets()
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Fatalf("error is %v, want %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	problem := func(status int) error {
		p := &client.ProblemError{}
		p.Status = status
		return fmt.Errorf("job x: %w", p)
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitError},
		{problem(409), exitError},
		{problem(404), exitNotFound},
		{&hintError{usagef("x"), "y"}, exitUsage},
		{&outcomeError{"j", exitJobFailed}, exitJobFailed},
		{&outcomeError{"j", exitCancelled}, exitCancelled},
		{&outcomeError{"j", exitTimeout}, exitTimeout},
		{&hintError{&unreachableError{"", errors.New("x")}, "y"}, exitUnreachable},
		{errDetached, exitInterrupted},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// The verb table, the completions and the help have to agree.
func TestVerbs_AreWhole(t *testing.T) {
	t.Parallel()
	root := newRoot(newApp(world{}))
	for _, c := range root.Commands() {
		if c.Short == "" {
			t.Errorf("%s has no description", c.Name())
		}
		if c.GroupID == "" && !c.Hidden && c.Name() != "exit-codes" && c.Name() != "completion" && c.Name() != "help" {
			t.Errorf("%s is in no group of the help", c.Name())
		}
		if strings.Contains(c.Use, "JOB") || strings.Contains(c.Use, "PLUGIN") || strings.Contains(c.Use, "NAME") {
			if c.ValidArgsFunction == nil {
				t.Errorf("%s completes nothing", c.Name())
			}
		}
		for _, sub := range c.Commands() {
			if strings.Contains(sub.Use, "NAME") && c.Name() != "token" && sub.Name() != "use" && sub.ValidArgsFunction == nil {
				t.Errorf("%s %s completes nothing", c.Name(), sub.Name())
			}
		}
	}
}
