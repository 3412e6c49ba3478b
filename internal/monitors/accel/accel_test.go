package accel_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a reader of the host that does what the test wants.
type host func(ctx context.Context, out chan<- resource.Snapshot) error

func (host) Name() string                                                  { return "cpu" }
func (h host) Run(ctx context.Context, out chan<- resource.Snapshot) error { return h(ctx, out) }

func steady(ctx context.Context, out chan<- resource.Snapshot) error {
	for {
		select {
		case out <- resource.Snapshot{Monitor: "cpu", Host: resource.Host{CPUs: 3}, Details: map[string]any{"from": "host"}}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestRun_JoinsHostAndAccelerators(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := make(chan resource.Snapshot), make(chan error, 1)
	go func() {
		ended <- accel.Run(ctx, "gpu", host(steady), func(_ context.Context, h resource.Host) (accel.Reading, error) {
			return accel.Reading{Vendor: "V", Devices: []resource.Device{{ID: "a", Index: h.CPUs}}, Details: map[string]any{"driver": "1"}}, nil
		}, out)
	}()
	s := <-out
	if s.Monitor != "gpu" || s.GPUVendor != "V" || s.Devices[0].Index != 3 || s.Details["from"] != "host" || s.Details["driver"] != "1" || s.At.IsZero() {
		t.Errorf("snapshot %+v", s)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestRun_EndsWithTheFirstError(t *testing.T) {
	errGPU, errHost := errors.New("GPU is lost"), errors.New("no /proc")
	none := func(context.Context, resource.Host) (accel.Reading, error) { return accel.Reading{}, nil }
	lost := func(context.Context, resource.Host) (accel.Reading, error) { return accel.Reading{}, errGPU }
	if err := accel.Run(t.Context(), "gpu", host(steady), lost, nil); !errors.Is(err, errGPU) {
		t.Errorf("error %v", err)
	}
	if err := accel.Run(t.Context(), "gpu", host(func(context.Context, chan<- resource.Snapshot) error { return errHost }), none, nil); !errors.Is(err, errHost) {
		t.Errorf("error %v", err)
	}
	if err := accel.Run(t.Context(), "gpu", host(func(context.Context, chan<- resource.Snapshot) error { return nil }), none, nil); err == nil {
		t.Error("a host that ended is no error")
	}
	if err := accel.Run(t.Context(), "gpu", host(func(context.Context, chan<- resource.Snapshot) error { panic("gopsutil") }), none, nil); err == nil || !strings.Contains(err.Error(), "panicked: gopsutil") {
		t.Errorf("error %v", err)
	}
}

func TestCommand(t *testing.T) {
	root := t.TempDir()
	for name, data := range map[string]string{
		"1/cmdline": "python3\x00-m\x00cjmworker\x00", "2/cmdline": "", "2/comm": "kworker/0:1\n",
		"3/cmdline": "a" + strings.Repeat("é", 100), "4/cmdline": "",
	} {
		path := filepath.Join(root, "proc", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for pid, want := range map[int]string{1: "python3 -m cjmworker", 2: "kworker/0:1", 3: "a" + strings.Repeat("é", 59), 4: "", 5: ""} {
		if got := accel.Command(root, pid); got != want || !utf8.ValidString(got) {
			t.Errorf("process %d: %q, want %q", pid, got, want)
		}
	}
}
