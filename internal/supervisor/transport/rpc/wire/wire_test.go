package wire_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var header = []byte(`{"jsonrpc":"2.0","method":"x"}`)

// pattern is n bytes in which every place can be told from its neighbours.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func TestReader_PayloadsOfEverySizeArriveWhole(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1, 100, 4096, 32<<10 - 46, 32<<10 - 38, 32<<10 - 37, 32 << 10, 33 << 10, 100_000, 1 << 20, 1<<20 + 1, 5 << 20, 10, 0, 3 << 20}
	var all []byte
	for _, n := range sizes {
		all = wire.AppendFrame(all, header, pattern(n))
	}
	take := func(r *wire.Reader, i int) ([]byte, error) {
		if i%2 == 0 {
			return r.Payload()
		}
		return r.TakePayload()
	}
	for name, src := range map[string]io.Reader{"whole": bytes.NewReader(all), "halves": iotest.HalfReader(bytes.NewReader(all))} {
		r := wire.NewReader(src, wire.Limits{})
		var kept [][]byte
		for i, n := range sizes {
			h, plen, err := r.Next()
			if err != nil || plen != n || !bytes.Equal(h, header) {
				t.Fatalf("%s: frame %d: header %q, payload of %d, %v", name, i, h, plen, err)
			}
			p, err := take(r, i)
			if err != nil || !bytes.Equal(p, pattern(n)) {
				t.Fatalf("%s: frame %d: payload of %d differs (%v)", name, i, n, err)
			}
			if !bytes.Equal(h, header) {
				t.Fatalf("%s: frame %d: its header changed while its payload was read", name, i)
			}
			if i%2 == 1 {
				kept = append(kept, p)
			}
		}
		if _, _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("%s: at the end: %v", name, err)
		}
		for i, p := range kept {
			if !bytes.Equal(p, pattern(sizes[2*i+1])) {
				t.Fatalf("%s: payload %d was overwritten after it was taken", name, 2*i+1)
			}
		}
	}
}

func TestReader_SkipsPayloadsNobodyTook(t *testing.T) {
	t.Parallel()
	var all []byte
	for i := range 50 {
		all = wire.AppendFrame(all, fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"m%d"}`, i), pattern(i*3000))
	}
	r := wire.NewReader(bytes.NewReader(all), wire.Limits{})
	for i := range 50 {
		h, _, err := r.Next()
		if err != nil || string(h) != fmt.Sprintf(`{"jsonrpc":"2.0","method":"m%d"}`, i) {
			t.Fatalf("frame %d: %q %v", i, h, err)
		}
	}
}

func TestReader_LongHeaderGrowsTheBuffer(t *testing.T) {
	t.Parallel()
	long := []byte(`{"jsonrpc":"2.0","method":"` + strings.Repeat("x", 60_000) + `"}`)
	all := wire.AppendFrame(nil, header, pattern(10))
	all = wire.AppendFrame(all, long, pattern(20))
	all = wire.AppendFrame(all, header, nil)
	got, err := decodeAll(iotest.OneByteReader(bytes.NewReader(all)), wire.Limits{})
	if err != nil || len(got) != 3 || !bytes.Equal(got[1].Header, long) || !bytes.Equal(got[1].Payload, pattern(20)) {
		t.Fatalf("%d frames, %v", len(got), err)
	}
}

func TestReader_ALengthAloneAllocatesLittle(t *testing.T) {
	src := wire.AppendPrefix(nil, len(header), 200<<20)
	src = append(append(src, header...), "only this"...)
	before := allocated()
	_, err := decodeAll(bytes.NewReader(src), wire.Limits{})
	after := allocated()
	var broken *wire.ProtocolError
	if !errors.As(err, &broken) || broken.Rule != wire.Truncated {
		t.Fatalf("got %v", err)
	}
	if after-before > 4<<20 {
		t.Fatalf("%d bytes were allocated for nothing", after-before)
	}
}

func TestReader_ErrorNamesTheBytes(t *testing.T) {
	t.Parallel()
	_, _, err := wire.NewReader(strings.NewReader("HTTP/1.1 200 OK"), wire.Limits{}).Next()
	if err == nil || !strings.Contains(err.Error(), "48 54 54 50 2f 31 2e 31") || !strings.Contains(err.Error(), "limit is 65536") {
		t.Fatalf("got %v", err)
	}
}

// socketpair is two connected Unix sockets.
func socketpair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return conns[0], conns[1]
}

func TestWriter_FramesOfManyGoroutinesNeverInterleave(t *testing.T) {
	t.Parallel()
	a, b := socketpair(t)
	w, err := wire.NewWriter(a, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	const senders, each = 8, 40
	sizes := []int{0, 10, 5000, 70_000, 400_000}
	errs := make(chan error, senders)
	for s := range senders {
		go func() {
			var err error
			for i := range each {
				n := sizes[(s+i)%len(sizes)]
				h := fmt.Appendf(nil, `{"jsonrpc":"2.0","method":"m","params":{"n":%d}}`, n)
				p := pattern(n)
				if _, err = w.Send(context.Background(), h, p[:n/3], p[n/3:]); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	r := wire.NewReader(b, wire.Limits{})
	for range senders * each {
		text, n, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		var h struct{ Params struct{ N int } }
		if err := json.Unmarshal(text, &h); err != nil || h.Params.N != n {
			t.Fatalf("header %s with a payload of %d (%v)", text, n, err)
		}
		if p, err := r.Payload(); err != nil || !bytes.Equal(p, pattern(n)) {
			t.Fatalf("payload of %d differs (%v)", n, err)
		}
	}
	for range senders {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	w.Wait()
}

func TestWriter_AFrameThatWasBegunIsFinishedAfterItsContextEnded(t *testing.T) {
	t.Parallel()
	a, b := socketpair(t)
	w, err := wire.NewWriter(a, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("nobody waits")
	cancel(gone)
	big := pattern(8 << 20)
	if begun, err := w.Send(ctx, header, big); !begun || !errors.Is(err, gone) {
		t.Fatalf("begun %v, %v", begun, err)
	}
	if begun, err := w.Send(ctx, header); begun || !errors.Is(err, gone) {
		t.Fatalf("a second frame while the first is under way: begun %v, %v", begun, err)
	}
	got, next := make(chan error, 1), make(chan error, 1)
	go func() {
		r := wire.NewReader(b, wire.Limits{})
		_, _, err := r.Next()
		p, perr := r.Payload()
		if !bytes.Equal(p, big) {
			perr = errors.Join(perr, errors.New("the payload differs"))
		}
		got <- errors.Join(err, perr)
		_, _, err = r.Next()
		next <- err
	}()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if _, err := w.Send(context.Background(), header); err != nil {
		t.Fatal(err)
	}
	if err := <-next; err != nil {
		t.Fatal(err)
	}
	w.Wait()
}

func TestWriter_ClosingTheSocketEndsABlockedFrame(t *testing.T) {
	t.Parallel()
	a, _ := socketpair(t)
	w, err := wire.NewWriter(a, wire.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := w.Send(context.Background(), header, pattern(8<<20))
		result <- err
	}()
	time.AfterFunc(10*time.Millisecond, func() { _ = a.Close() })
	if err := <-result; err == nil {
		t.Fatal("a frame that cannot be written was reported as sent")
	}
	w.Wait()
}

func TestWriter_RefusesWhatIsOverTheLimits(t *testing.T) {
	t.Parallel()
	a, _ := socketpair(t)
	w, err := wire.NewWriter(a, wire.Limits{MaxHeader: 30, MaxPayload: 5})
	if err != nil {
		t.Fatal(err)
	}
	var limit *wire.LimitError
	if begun, err := w.Send(context.Background(), append(header, ' ')); begun || !errors.As(err, &limit) || limit.What != "header" {
		t.Fatalf("begun %v, %v", begun, err)
	}
	if begun, err := w.Send(context.Background(), header, []byte("abc"), []byte("def")); begun || !errors.As(err, &limit) || limit.Len != 6 {
		t.Fatalf("begun %v, %v", begun, err)
	}
	if _, err := w.Send(context.Background(), header, []byte("abc"), []byte("de")); err != nil {
		t.Fatal(err)
	}
}
