package envs

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Requirement is one thing to install, as pip and uv take it on their command
// line. It is one argument, or two for an editable one, and never an option of
// its own making.
type Requirement struct {
	Text     string // as written
	Arg      string // for the tool: local paths are absolute
	Name     string // of the distribution, "" where only the installation tells
	Path     string // absolute, for a directory or file of this machine
	Editable bool
	repo     string // last part of a repository's address
}

var (
	namePart   = `[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?`
	versions   = `(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+`
	namedSpec  = regexp.MustCompile(`^(` + namePart + `)\s*(\[[A-Za-z0-9,._ -]*\])?\s*(\(?` + versions + `(?:\s*,\s*` + versions + `)*\)?)?\s*(;[^;]*)?$`)
	markerSpec = regexp.MustCompile(`^;\s*[A-Za-z0-9_ .'"<>=!()~,-]*(?:<|>|=| in )[A-Za-z0-9_ .'"<>=!()~,-]*$`)
	directSpec = regexp.MustCompile(`^(` + namePart + `)\s*(\[[A-Za-z0-9,._ -]*\])?\s*@\s*(.*)$`)
	archives   = []string{".whl", ".tar.gz", ".zip", ".tar.bz2"}
	// urlChars is what RFC 3986 lets stand in an address.
	urlChars = regexp.MustCompile(`^[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+$`)
)

// parseRequirement reads one; relative paths start at dir.
func parseRequirement(text, dir string) (Requirement, error) {
	r := Requirement{Text: text}
	s := strings.TrimSpace(text)
	for _, flag := range []string{"-e ", "--editable ", "--editable="} {
		if rest, ok := strings.CutPrefix(s, flag); ok {
			r.Editable, s = true, strings.TrimSpace(rest)
			break
		}
	}
	switch {
	case s == "":
		return r, fmt.Errorf("is empty")
	case strings.HasPrefix(s, "-"):
		return r, fmt.Errorf("is %q: options are not taken here; only -e may stand before a directory", text)
	}
	if m := directSpec.FindStringSubmatch(s); m != nil && strings.Contains(m[3], ":") {
		if err := r.address(m[3]); err != nil {
			return r, err
		}
		r.Name, r.Arg = m[1], m[1]+m[2]+" @ "+m[3]
		return r, nil
	}
	if strings.Contains(s, "://") {
		r.Arg = s
		return r, r.address(s)
	}
	if looksLocal(s) || r.Editable {
		return r.local(s, dir)
	}
	m := namedSpec.FindStringSubmatch(s)
	if m == nil || m[4] != "" && !markerSpec.MatchString(m[4]) {
		return r, fmt.Errorf("is %q, which is no package: write NAME, NAME==1.2, git+https://HOST/REPO, ./DIRECTORY or -e ./DIRECTORY", text)
	}
	r.Name, r.Arg = m[1], s
	return r, nil
}

func looksLocal(s string) bool {
	return strings.HasPrefix(s, ".") || strings.ContainsRune(s, '/') ||
		slices.ContainsFunc(archives, func(ext string) bool { return strings.HasSuffix(s, ext) })
}

// address checks the URL of a package and notes the repository's name.
func (r *Requirement) address(s string) error {
	u, err := url.Parse(s)
	if err != nil || !urlChars.MatchString(s) {
		return fmt.Errorf("is %q, which is no address", r.Text)
	}
	known := []string{"git+https", "git+http", "git+ssh", "git+file", "https", "http", "file"}
	if !slices.Contains(known, u.Scheme) {
		return fmt.Errorf("is %q: addresses begin with %s", r.Text, strings.Join(known, "://, ")+"://")
	}
	if u.Host == "" && !strings.HasSuffix(u.Scheme, "file") || u.Path == "" {
		return fmt.Errorf("is %q, which names no package: write git+https://HOST/OWNER/REPO", r.Text)
	}
	if egg, ok := strings.CutPrefix(u.Fragment, "egg="); ok {
		r.Name, _, _ = strings.Cut(egg, "&")
	}
	last, _, _ := strings.Cut(path.Base(u.Path), "@") // a tag or commit
	r.repo = strings.TrimSuffix(last, ".git")
	return nil
}

func (r Requirement) local(s, dir string) (Requirement, error) {
	file, extras, _ := strings.Cut(s, "[")
	if extras != "" {
		extras = "[" + extras
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	info, err := os.Stat(file)
	if err != nil {
		return r, fmt.Errorf("is %q, but %s is not there", r.Text, file)
	}
	if r.Editable && !info.IsDir() {
		return r, fmt.Errorf("is %q, but only a directory can be editable", r.Text)
	}
	r.Path, r.Arg = filepath.Clean(file), filepath.Clean(file)+extras
	r.repo = filepath.Base(r.Path)
	return r, nil
}

// args are the words for the command line of pip and uv.
func (r Requirement) args() []string {
	if r.Editable {
		return []string{"-e", r.Arg}
	}
	return []string{r.Arg}
}

// moduleName is the package that holds the plugin, as the Python installers
// guess it from what is installed.
func (r Requirement) moduleName() string {
	name := r.Name
	if r.repo != "" && r.Name == "" {
		name = r.repo
		for _, ext := range archives {
			name = strings.TrimSuffix(name, ext)
		}
		if strings.HasSuffix(r.Arg, ".whl") {
			name, _, _ = strings.Cut(name, "-")
		}
	}
	return strings.ReplaceAll(name, "-", "_")
}
