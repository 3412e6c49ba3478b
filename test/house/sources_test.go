package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestPackages_SayWhatTheyAre(t *testing.T) {
	t.Parallel()
	for _, p := range ours(t) {
		if strings.TrimSpace(p.Doc) == "" {
			t.Errorf("%s has no package comment: what it owns, what it promises, where to start", p.rel())
		}
	}
}

func TestPackages_RegisterNothingInInit(t *testing.T) {
	t.Parallel()
	for _, p := range ours(t) {
		for _, file := range p.files() {
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("cannot parse %s: %v", file, err)
				continue
			}
			for _, d := range tree.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s: %s has a func init; what exists is listed in assemble.go, routes.go or the verb table", p.rel(), filepath.Base(file))
				}
			}
		}
	}
}

// Lengths are read by people, not enforced: the report shows in `make house`.
func TestSources_LengthReport(t *testing.T) {
	t.Parallel()
	const fileLines, funcLines = 500, 60
	for _, p := range ours(t) {
		for _, file := range p.files() {
			fset := token.NewFileSet()
			tree, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("cannot parse %s: %v", file, err)
				continue
			}
			if ast.IsGenerated(tree) {
				continue
			}
			name := p.rel() + "/" + filepath.Base(file)
			if n := fset.File(tree.FileStart).LineCount(); n > fileLines {
				t.Logf("%s: %d lines", name, n)
			}
			for _, d := range tree.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				if n := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; n > funcLines {
					t.Logf("%s: %s has %d lines", name, f.Name.Name, n)
				}
			}
		}
	}
}

// What must not be named is asked of the machine that runs the test, so that
// the list itself names nothing.
func TestCommitted_NamesNoMachine(t *testing.T) {
	t.Parallel()
	root, files := committed(t)
	forbidden := map[string]*regexp.Regexp{}
	addPath := func(what, path string) {
		if path == "" || path == "/" {
			return
		}
		// A path of ours begins where no other path goes on.
		forbidden[what+" "+path] = regexp.MustCompile(`(^|[^\w./-])` + regexp.QuoteMeta(path) + `(/|\b)`)
	}
	addPath("checkout", root)
	if home, err := os.UserHomeDir(); err == nil {
		addPath("home", strings.TrimRight(home, "/")+"/")
	}
	addPath("home of root", "/"+"root/")
	for _, host := range registryHosts() {
		forbidden["registry "+host] = regexp.MustCompile(regexp.QuoteMeta(host))
	}

	for _, name := range files {
		path := filepath.Join(root, name)
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 4<<20 {
			continue // removed but not yet committed, a link, or data
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("cannot read %s: %v", name, err)
			continue
		}
		if bytes.IndexByte(data, 0) >= 0 {
			continue
		}
		for what, re := range forbidden {
			if at := re.FindIndex(data); at != nil {
				line := 1 + bytes.Count(data[:at[0]], []byte("\n"))
				t.Errorf("%s:%d names this machine (%s)", name, line, what)
			}
		}
	}
}

// registryHosts returns the hosts that this machine's package tools are pointed
// at, when they are not the public ones.
func registryHosts() []string {
	public := map[string]bool{
		"proxy.golang.org": true, "sum.golang.org": true, "goproxy.io": true,
		"pypi.org": true, "registry.npmjs.org": true, "static.crates.io": true, "index.crates.io": true,
	}
	var sources []string
	for _, env := range []string{"GOPROXY", "GOSUMDB", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		sources = append(sources, os.Getenv(env))
	}
	if out, err := exec.Command("go", "env", "GOPROXY").Output(); err == nil {
		sources = append(sources, string(out))
	}
	for _, file := range []string{"/etc/pip.conf", os.ExpandEnv("$HOME/.pip/pip.conf"), os.ExpandEnv("$HOME/.config/pip/pip.conf"), os.ExpandEnv("$HOME/.npmrc")} {
		if data, err := os.ReadFile(file); err == nil {
			sources = append(sources, string(data))
		}
	}
	var hosts []string
	for _, s := range sources {
		for _, m := range regexp.MustCompile(`https?://(?:[^\s/@]+@)?([^\s/:,|"]+)`).FindAllStringSubmatch(s, -1) {
			if !public[m[1]] {
				hosts = append(hosts, m[1])
			}
		}
	}
	return hosts
}
