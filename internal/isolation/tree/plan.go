package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/isolation/inside"
	"github.com/cjmd/cjmd/internal/isolation/proc"
)

// Plan is what a Host tells a shim, as one JSON value on a pipe that then stays
// open: its end of file means that the daemon is gone.
type Plan struct {
	Strategy Strategy `json:"strategy"`
	Path     string   `json:"path"`
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	Files    int      `json:"files"` // inherited descriptors, standard streams included
	DeathSig bool     `json:"death_sig"`
	Box      *Box     `json:"box,omitempty"`
}

// Box is what a shim makes around a worker of tier sandboxed.
type Box struct {
	Tree    inside.Tree `json:"tree"`
	Network Network     `json:"network"`
	UID     int         `json:"uid,omitempty"` // the worker's user; 0: the daemon's
	GID     int         `json:"gid,omitempty"`
	NoFile  int         `json:"no_file,omitempty"` // open files of one process; 0: inherited
}

// Network is what a worker sees of it.
type Network string

// The networks of a Box.
const (
	HostNetwork     Network = "host"
	NoNetwork       Network = "none"
	LoopbackNetwork Network = "loopback" // one of its own
)

// Receipt is what a shim tells its Host, one JSON value each.
type Receipt struct {
	Started int              `json:"started,omitempty"` // the worker's pid as the shim sees it
	Error   string           `json:"error,omitempty"`   // why nothing was started
	NoProc  string           `json:"no_proc,omitempty"` // why the namespace has no /proc of its own
	Facts   []isolation.Fact `json:"facts,omitempty"`   // what holds of a Box
	Exited  bool             `json:"exited,omitempty"`
	Code    int              `json:"code,omitempty"`
	Signal  int              `json:"signal,omitempty"`
}

// record says on disk which shim stands for a sandbox, so that the next daemon
// can end what a killed one left.
type record struct {
	Boot string  `json:"boot"`
	Shim proc.ID `json:"shim"`
}

func writeRecord(path string, shim proc.ID) error {
	boot, err := proc.BootID()
	if err != nil {
		return err
	}
	b, err := json.Marshal(record{Boot: boot, Shim: shim})
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot record the sandbox: %w", err)
	}
	return nil
}

// readRecord returns ok only for a whole record of this boot.
func readRecord(path string) (r record, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &r) != nil {
		return record{}, false
	}
	boot, err := proc.BootID()
	return r, err == nil && r.Boot == boot && r.Shim.PID > 0
}

func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the sandbox record: %w", err)
	}
	return nil
}
