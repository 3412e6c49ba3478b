package jobfiles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const job = "0123abcd"

func open(t *testing.T, dir string, l Limits) *Store {
	t.Helper()
	s, err := Open(Options{Path: dir, Limits: l})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *Store, name, body string) File {
	t.Helper()
	f, _, err := s.Put(job, name, Upload{Body: strings.NewReader(body), Size: int64(len(body))})
	require.NoError(t, err)
	return f
}

func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])
}

func read(t *testing.T, s *Store, name string) string {
	t.Helper()
	f, _, err := s.Open(job, name)
	require.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return string(b)
}

func TestPut_IsThereAndKnown(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	f, created, err := s.Put(job, "in/deep/talk.wav", Upload{Body: strings.NewReader("one"), Size: 3, SHA256: sum("one")})
	require.NoError(t, err)
	require.True(t, created)
	require.Equal(t, sum("one"), f.SHA256)
	require.Equal(t, "one", read(t, s, "in/deep/talk.wav"))
	used, total := s.Used(job)
	require.Equal(t, [2]int64{3, 3}, [2]int64{used, total})

	g, created, err := s.Put(job, "in/deep/talk.wav", Upload{Body: strings.NewReader("other"), Size: -1, IfMatch: f.ETag})
	require.NoError(t, err)
	require.False(t, created)
	require.NotEqual(t, f.ETag, g.ETag)
	used, _ = s.Used(job)
	require.EqualValues(t, 5, used)

	list, err := s.List(job)
	require.NoError(t, err)
	require.Equal(t, []File{g}, list.Files)
	require.EqualValues(t, 5, list.Bytes)
	st, err := os.Stat(s.Path(job))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
}

func TestPut_Refusals(t *testing.T) {
	t.Parallel()
	name, quota, many, condition, check := as[*NameError], as[*QuotaError], as[*TooManyError], as[*ConditionError], as[*ChecksumError]
	broken := errors.New("the client is gone")
	for what, c := range map[string]struct {
		name string
		u    Upload
		want func(error) bool
	}{
		"parent":           {"../x", Upload{}, name},
		"parent inside":    {"a/../../x", Upload{}, name},
		"absolute":         {"/etc/passwd", Upload{}, name},
		"empty":            {"", Upload{}, name},
		"empty element":    {"a//b", Upload{}, name},
		"dot":              {"a/./b", Upload{}, name},
		"NUL":              {"a\x00b", Upload{}, name},
		"newline":          {"a\nb", Upload{}, name},
		"backslash":        {`..\x`, Upload{}, name},
		"right to left":    {"a\u202egpj.exe", Upload{}, name},
		"zero width":       {"a\u200bb", Upload{}, name},
		"decomposed":       {"e\u0301.txt", Upload{}, name},
		"not UTF-8":        {"a\xff", Upload{}, name},
		"long element":     {strings.Repeat("a", 256), Upload{}, name},
		"long":             {strings.Repeat("a/", 600) + "a", Upload{}, name},
		"deep":             {strings.Repeat("a/", 16) + "a", Upload{}, name},
		"below a file":     {"there/below", Upload{}, name},
		"a directory":      {"dir", Upload{}, name},
		"too large":        {"big", Upload{Size: 101}, quota},
		"too large, quiet": {"big", Upload{Size: -1, Body: strings.NewReader(strings.Repeat("x", 101))}, quota},
		"too many":         {"fourth", Upload{}, many},
		"not there":        {"new", Upload{IfMatch: `"x"`}, condition},
		"other":            {"there", Upload{IfMatch: `"x"`}, condition},
		"there already":    {"there", Upload{IfAbsent: true}, condition},
		"checksum":         {"there", Upload{SHA256: sum("y"), Body: strings.NewReader("x"), Size: 1}, check},
		"truncated":        {"there", Upload{Body: strings.NewReader("x"), Size: 2}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"broken":           {"there", Upload{Body: io.MultiReader(strings.NewReader("x"), failing{broken}), Size: 5}, func(err error) bool { return errors.Is(err, broken) }},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir(), Limits{JobBytes: 100, JobFiles: 3})
			put(t, s, "there", "old")
			put(t, s, "dir/x", "old")
			if what != "a directory" {
				put(t, s, "third", "old")
			}
			_, before := s.Used(job)
			u := c.u
			if u.Body == nil {
				u.Body = strings.NewReader("")
			}
			_, _, err := s.Put(job, c.name, u)
			require.True(t, c.want(err), "%v", err)
			used, total := s.Used(job)
			require.Equal(t, [2]int64{before, before}, [2]int64{used, total}, "what was set aside is given back")
			require.Equal(t, "old", read(t, s, "there"))
			left, err := os.ReadDir(filepath.Join(s.path, uploadsDir))
			require.NoError(t, err)
			require.Empty(t, left, "nothing unfinished stays")
		})
	}
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestPut_TotalIsFull(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{TotalBytes: 10})
	put(t, s, "a", "123456")
	var quota *QuotaError
	_, _, err := s.Put("ffff", "b", Upload{Body: strings.NewReader("12345"), Size: 5})
	require.ErrorAs(t, err, &quota)
	require.True(t, quota.Full)
	require.NoError(t, s.Remove(job, "a", ""))
	_, _, err = s.Put("ffff", "b", Upload{Body: strings.NewReader("12345"), Size: 5})
	require.NoError(t, err)
}

func TestLinks_AreNotFollowed(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	s := open(t, t.TempDir(), Limits{})
	put(t, s, "mine", "mine")
	dir := s.Path(job)
	require.NoError(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "link")))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, "away")))
	require.NoError(t, os.Symlink("mine", filepath.Join(dir, "near")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	require.NoError(t, err)
	defer l.Close()

	for _, name := range []string{"link", "away/secret", "near", "fifo", "sock"} {
		_, _, err := s.Open(job, name)
		require.ErrorIs(t, err, ErrNotFound, name)
	}
	_, _, err = s.Put(job, "away/secret", Upload{Body: strings.NewReader("x"), Size: 1})
	var name *NameError
	require.ErrorAs(t, err, &name)
	list, err := s.List(job)
	require.NoError(t, err)
	require.Len(t, list.Files, 1)
	require.Equal(t, 5, list.Unnamed)

	// An upload replaces the link, not what it names.
	put(t, s, "link", "new")
	require.Equal(t, "new", read(t, s, "link"))
	require.NoError(t, s.RemoveAll(job))
	got, err := os.ReadFile(filepath.Join(outside, "secret"))
	require.NoError(t, err)
	require.Equal(t, "secret", string(got))
}

func TestMake_RefusesALinkInItsPlace(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	_, err := s.Make(job, "w")
	require.NoError(t, err)
	_, err = s.Make(job, "w")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(t.TempDir(), s.Path("ffff")))
	_, err = s.Make("ffff", "w")
	require.ErrorIs(t, err, syscall.ENOTDIR)
	_, err = s.List("ffff")
	require.Error(t, err)
	require.NoError(t, s.RemoveAll("ffff"))
}

func TestSettle_EmptyGoesAndOthersAreMeasured(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	dir, err := s.Make(job, "w")
	require.NoError(t, err)
	require.NoError(t, s.Settle(job, "w"))
	require.NoDirExists(t, dir)
	require.NoError(t, s.Settle(job, "w"))

	put(t, s, "in", "123")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out"), []byte("12345"), 0o600))
	require.NoError(t, s.Settle(job, "w"))
	used, total := s.Used(job)
	require.Equal(t, [2]int64{8, 8}, [2]int64{used, total})
}

// An empty directory serves the next job of the same user, and of nobody else.
func TestSettle_EmptyDirectoriesServeAgain(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	inode := func(path string) uint64 {
		var st syscall.Stat_t
		require.NoError(t, syscall.Stat(path, &st))
		return st.Ino
	}
	use := func(job, user string, edit func(dir string)) uint64 {
		dir, err := s.Make(job, user)
		require.NoError(t, err)
		list, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, list)
		st, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
		n := inode(dir)
		edit(dir)
		require.NoError(t, s.Settle(job, user))
		return n
	}
	nothing := func(string) {}
	first := use("a1", "w", nothing)
	require.NoDirExists(t, s.Path("a1"))
	other := use("a2", "v", nothing)
	require.NotEqual(t, first, other)
	require.Equal(t, first, use("a3", "w", func(dir string) { require.NoError(t, os.Chmod(dir, 0o755)) }))
	require.Empty(t, s.spares["w"], "it was changed")
	use("a4", "w", func(dir string) { require.NoError(t, os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600)) })
	require.FileExists(t, filepath.Join(s.Path("a4"), ".hidden"))

	for i := range 2 * maxSpares {
		_, err := s.Make(strings.Repeat("b", i+1), "w")
		require.NoError(t, err)
	}
	for i := range 2 * maxSpares {
		require.NoError(t, s.Settle(strings.Repeat("b", i+1), "w"))
	}
	require.Len(t, s.spares["w"], maxSpares)
	spares, err := os.ReadDir(filepath.Join(s.path, spareDir))
	require.NoError(t, err)
	require.Len(t, spares, maxSpares+1)

	// Where a job has files already, and with links in the place.
	put(t, s, "in", "123")
	dir, err := s.Make(job, "w")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "in"))
	require.NoError(t, os.Symlink(t.TempDir(), s.Path("cc")))
	_, err = s.Make("cc", "w")
	require.ErrorIs(t, err, syscall.ENOTDIR)
	require.Len(t, s.spares["w"], maxSpares)
}

func TestRemoveAll_AlsoWithoutRights(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	put(t, s, "a/b/c", "1")
	require.NoError(t, os.Chmod(filepath.Join(s.Path(job), "a/b"), 0))
	require.NoError(t, os.Chmod(filepath.Join(s.Path(job), "a"), 0))
	require.NoError(t, s.RemoveAll(job))
	require.NoDirExists(t, s.Path(job))
	_, total := s.Used(job)
	require.Zero(t, total)
}

func TestOpen_ClearsDebrisAndMeasures(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Limits{})
	put(t, s, "a", "12345")
	require.NoError(t, s.Mark("01J:x"))
	up, err := s.newUpload(job) // as a killed process leaves it
	require.NoError(t, err)
	_, err = up.Write([]byte("half"))
	require.NoError(t, err)
	require.NoError(t, up.file.Close())

	s = open(t, dir, Limits{})
	_, total := s.Used(job)
	require.EqualValues(t, 5, total)
	left, err := os.ReadDir(filepath.Join(dir, uploadsDir))
	require.NoError(t, err)
	require.Empty(t, left)
	marks, err := s.Marked()
	require.NoError(t, err)
	require.Equal(t, []string{"01J:x"}, marks)
	require.NoError(t, s.Unmark("01J:x"))
	require.NoError(t, s.Unmark("01J:x"))
}

func TestSum_OncePerVersion(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	dir, err := s.Make(job, "w")
	require.NoError(t, err)
	path := filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(path, []byte("one"), 0o600))
	f, err := s.Stat(job, "out")
	require.NoError(t, err)
	require.Empty(t, f.SHA256)
	f, err = s.Sum(t.Context(), job, f)
	require.NoError(t, err)
	require.Equal(t, sum("one"), f.SHA256)
	again, err := s.Stat(job, "out")
	require.NoError(t, err)
	require.Equal(t, f, again)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, os.WriteFile(path, []byte("twoo"), 0o600))
	f, err = s.Stat(job, "out")
	require.NoError(t, err)
	require.Empty(t, f.SHA256, "another version")
	_, err = s.Sum(gone, job, f)
	require.ErrorIs(t, err, context.Canceled)
}

func TestCopy_TakesWhatWasUploaded(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	put(t, s, "in/a", "in")
	put(t, s, "out", "out")
	started := time.Now().Add(time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(s.Path(job), "out"), started, started.Add(time.Second)))
	require.NoError(t, s.Copy(job, "ffff", started))
	list, err := s.List("ffff")
	require.NoError(t, err)
	require.Len(t, list.Files, 1)
	require.Equal(t, "in/a", list.Files[0].Name)
}

func TestPut_OneOfManyThatMustBeFirst(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Limits{})
	var wg sync.WaitGroup
	won := make(chan string, 8)
	for i := range 8 {
		body := strings.Repeat(string(rune('a'+i)), 1000)
		wg.Go(func() {
			_, _, err := s.Put(job, "x", Upload{Body: strings.NewReader(body), Size: -1, IfAbsent: true})
			var condition *ConditionError
			if err == nil {
				won <- body
			} else {
				require.ErrorAs(t, err, &condition)
			}
		})
	}
	wg.Wait()
	close(won)
	require.Len(t, won, 1)
	require.Equal(t, <-won, read(t, s, "x"))
	used, _ := s.Used(job)
	require.EqualValues(t, 1000, used)
}

// Whatever a name is made of, nothing outside of the job's directory is touched.
func TestPut_NeverLeavesTheDirectory(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := open(t, filepath.Join(base, "root"), Limits{})
	element := rapid.SampledFrom([]string{"..", ".", "", "a", "é", "e\u0301", "\x00", "~", "..\\", "%2e%2e", "a b", "\u202e", "-rf", ".uploads", job})
	rapid.Check(t, func(rt *rapid.T) {
		name := strings.Join(rapid.SliceOfN(element, 1, 6).Draw(rt, "name"), "/")
		_, _, err := s.Put(job, name, Upload{Body: bytes.NewReader(nil), Size: -1})
		if (err == nil) != (CheckName(name) == nil) {
			var below *NameError // a file stands where a directory is wanted, or the other way round
			if !errors.As(err, &below) {
				rt.Fatalf("%q: %v", name, err)
			}
		}
		for dir, want := range map[string]int{base: 1, s.path: 4, filepath.Join(s.path, uploadsDir): 0, filepath.Join(s.path, marksDir): 0} {
			if list, err := os.ReadDir(dir); err != nil || len(list) > want {
				rt.Fatalf("%q made %v in %s (%v)", name, list, dir, err)
			}
		}
	})
}

// What a worker did to its directory keeps nobody from listing, measuring and
// starting.
func TestOpen_DirectoriesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, Limits{})
	put(t, s, "a", "1")
	require.NoError(t, os.Chmod(s.Path(job), 0))
	t.Cleanup(func() { _ = os.Chmod(s.Path(job), 0o700) })
	require.NoError(t, os.Symlink("/nowhere", s.Path("ffff")))
	s = open(t, dir, Limits{})
	list, err := s.List(job)
	require.NoError(t, err)
	require.Equal(t, 1, len(list.Files)+list.Unnamed, "root sees it all the same")
	require.NoError(t, s.RemoveAll(job))
	require.NoDirExists(t, s.Path(job))
}
