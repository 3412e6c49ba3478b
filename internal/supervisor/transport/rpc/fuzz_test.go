package rpc_test

import (
	"errors"
	"testing"

	"github.com/cjmd/cjmd/internal/supervisor"
	"github.com/cjmd/cjmd/internal/supervisor/transport/rpc/wiretest"
)

// FuzzConn: whatever a worker sends during a call, the connection ends with a
// reason, the call hears it or its answer, and nothing hangs or panics.
func FuzzConn(f *testing.F) {
	for _, path := range wiretest.Paths(f) {
		tr := wiretest.Load(f, path)
		f.Add(tr.Bytes["w2d"])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := dial(t, supervisor.Hello{})
		l.peer.read()
		done := l.execute(t, supervisor.Call{ID: "j1", Stream: true}, &recorder{})
		l.peer.read() // hello was "1", this is "2", as in the transcripts
		go func() {
			_, _ = l.peer.sock.Write(b) // fails when the connection was ended before
			_ = l.peer.sock.CloseWrite()
		}()
		<-l.Done()
		var lost *supervisor.ConnLostError
		if !errors.As(l.Err(), &lost) || lost.Cause == nil {
			t.Fatalf("the connection ended with %v", l.Err())
		}
		o := <-done
		var failed *supervisor.CallError
		if o.err != nil && !errors.As(o.err, &lost) && !errors.As(o.err, &failed) {
			t.Fatalf("the call ended with %v", o.err)
		}
	})
}
