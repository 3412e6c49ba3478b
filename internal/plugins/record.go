package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// EnvRecordFile lies in every finished environment of the installer; it is
// written last, so an environment without one is not finished.
const EnvRecordFile = "cjm-env.json"

// EnvRecord says how an environment was made.
type EnvRecord struct {
	Format    int      `json:"format"`
	Env       string   `json:"env"`
	Manager   string   `json:"manager"`
	Tool      string   `json:"tool"`        // and its version
	Installer string   `json:"installer"`   // version of cjm-ctl
	Inputs    string   `json:"inputs_hash"` // of everything it was made from
	Python    string   `json:"python"`      // version
	Base      string   `json:"base_python"` // interpreter that the environment rests on
	Lock      []string `json:"lock"`        // what ReadLock found when it was finished
	LockHash  string   `json:"lock_hash"`
	// Source and Entry are the file and the name in it that asked for it.
	Source    string    `json:"source"`
	Entry     string    `json:"entry"`
	CreatedAt time.Time `json:"created_at"`
	Seconds   float64   `json:"seconds"`
	Bytes     int64     `json:"bytes"`
}

// ReadEnvRecord reads the record of the environment in dir; fs.ErrNotExist
// when it has none.
func ReadEnvRecord(dir string) (EnvRecord, error) {
	var r EnvRecord
	b, err := os.ReadFile(filepath.Join(dir, EnvRecordFile))
	if err != nil {
		return r, fmt.Errorf("cannot read the record of environment %s: %w", dir, err)
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Format != 1 {
		return r, fmt.Errorf("cannot understand the record of environment %s; install it again", dir)
	}
	return r, nil
}

// ReadLock lists what is installed in the environment dir: name==version, with
// " @ " and where it came from unless that was an index. It reads the disk and
// runs nothing.
func ReadLock(dir string) ([]string, error) {
	sites, err := filepath.Glob(filepath.Join(dir, "lib", "python*", "site-packages"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the packages of %s: %w", dir, err)
	}
	if len(sites) == 0 {
		return nil, fmt.Errorf("cannot list the packages of %s: it has no site-packages", dir)
	}
	var lock []string
	for _, site := range sites {
		entries, err := os.ReadDir(site)
		if err != nil {
			return nil, fmt.Errorf("cannot list the packages of an environment: %w", err)
		}
		for _, e := range entries {
			base, isDist := strings.CutSuffix(e.Name(), ".dist-info")
			if !isDist {
				if base, isDist = strings.CutSuffix(e.Name(), ".egg-info"); !isDist {
					continue
				}
			}
			name, version, _ := strings.Cut(base, "-")
			version, _, _ = strings.Cut(version, "-py") // of egg-info
			name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
			if from := directURL(filepath.Join(site, e.Name())); from != "" {
				version += " @ " + from
			}
			lock = append(lock, name+"=="+version)
		}
	}
	slices.Sort(lock)
	return slices.Compact(lock), nil
}

// directURL is where a package came from that was not taken from an index.
func directURL(dist string) string {
	b, err := os.ReadFile(filepath.Join(dist, "direct_url.json"))
	if err != nil {
		return ""
	}
	var d struct {
		URL string `json:"url"`
		VCS struct {
			VCS    string `json:"vcs"`
			Commit string `json:"commit_id"`
		} `json:"vcs_info"`
	}
	if json.Unmarshal(b, &d) != nil || d.URL == "" {
		return ""
	}
	if d.VCS.Commit != "" {
		return d.VCS.VCS + "+" + d.URL + "@" + d.VCS.Commit
	}
	return d.URL
}

// LockHash is the hash of a lock.
func LockHash(lock []string) string {
	sum := sha256.Sum256([]byte(strings.Join(lock, "\n")))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// LockChanges says what changed between two locks, one phrase a package.
func LockChanges(was, is []string) []string {
	old, now := byName(was), byName(is)
	var words []string
	for _, l := range is {
		switch before, had := old[distName(l)]; {
		case !had:
			words = append(words, l+" was added")
		case before != l:
			words = append(words, before+" became "+l)
		}
	}
	for _, l := range was {
		if _, has := now[distName(l)]; !has {
			words = append(words, l+" is gone")
		}
	}
	return words
}

// lockDifference is LockChanges in a few words.
func lockDifference(was, is []string) string {
	words := LockChanges(was, is)
	if more := len(words) - 4; more > 0 {
		words = append(words[:4], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

func byName(lock []string) map[string]string {
	m := make(map[string]string, len(lock))
	for _, l := range lock {
		m[distName(l)] = l
	}
	return m
}

func distName(l string) string {
	name, _, _ := strings.Cut(l, "==")
	return name
}

// EnvOf is the directory of the environment whose interpreter python is, with
// links resolved on the way to it but not the interpreter's own; "" when the
// path does not look like one. ok is false when it is not there.
func EnvOf(python string) (dir string, ok bool) {
	if filepath.Base(filepath.Dir(python)) != "bin" {
		return "", false
	}
	dir = filepath.Dir(filepath.Dir(python))
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return dir, !errors.Is(err, os.ErrNotExist)
	}
	return real, true
}
