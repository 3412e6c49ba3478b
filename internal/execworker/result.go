package execworker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/execspec"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

// openRegular refuses what was opened, without blocking, and is no regular file:
// a FIFO that nobody writes to would hold up the job, and no cancel would help.
func openRegular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "read", Path: f.Name(), Err: errors.New("it is no regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// resultFile reads what the program left. The file is opened below the job's
// directory, so that a link cannot lead out of it.
func (j *job) resultFile(name string) ([]byte, *failure) {
	missing := func(err error) *failure {
		return &failure{category: "fatal", message: fmt.Sprintf("the program ended well and left no usable %s: %v", name, err)}
	}
	root, err := os.OpenRoot(j.dir)
	if err != nil {
		return nil, missing(err)
	}
	defer root.Close()
	f, err := openRegular(root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0))
	if err != nil {
		return nil, missing(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, missing(err)
	}
	kind := j.w.program.Spec.Result.Type
	if kind == execspec.ResultPath {
		b, _ := json.Marshal(object{"path": filepath.Join(j.dir, name), "bytes": info.Size()}) // plain values
		return b, nil
	}
	raw, err := io.ReadAll(io.LimitReader(f, int64(j.w.most)+1))
	if err != nil {
		return nil, missing(err)
	}
	if len(raw) > j.w.most {
		return nil, tooLong(j.w.most)
	}
	return asResult(raw, kind == execspec.ResultText, name)
}

// asResult makes a JSON value of what a program wrote.
func asResult(raw []byte, asText bool, where string) ([]byte, *failure) {
	if asText {
		text := strings.TrimSuffix(strings.ToValidUTF8(string(raw), "\ufffd"), "\n")
		return wire.AppendString(make([]byte, 0, len(text)+2), text), nil
	}
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && !json.Valid(raw) {
		return nil, &failure{category: "fatal", message: fmt.Sprintf("%s holds no JSON: %s", where, wire.Excerpt(raw))}
	}
	return raw, nil
}
