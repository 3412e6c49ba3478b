package sqlitestore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// idleWriter is a writer whose loop does not run.
func idleWriter() (*writer, *time.Timer) {
	w := &writer{kick: make(chan struct{}, 1)}
	w.hold = time.AfterFunc(time.Hour, func() {})
	w.hold.Stop()
	return w, time.NewTimer(time.Hour)
}

func ops(n int, lazy bool) []*op {
	out := make([]*op, n)
	for i := range out {
		out[i] = &op{lazy: lazy}
	}
	return out
}

func TestWriter_OneWhoWritesAloneWaitsForNobody(t *testing.T) {
	t.Parallel()
	w, pause := idleWriter()
	w.wake()
	w.gather(ops(gatherFrom-1, false), pause)
	w.gather(ops(2*gatherFrom, true), pause) // for those nobody waits
	require.Len(t, w.kick, 1, "it waited for something")
}

func TestWriter_ThoseWhoWroteTogetherAreGivenTimeToComeBack(t *testing.T) {
	t.Parallel()
	w, pause := idleWriter()
	begin := time.Now()
	w.gather(ops(gatherFrom, false), pause)
	require.GreaterOrEqual(t, time.Since(begin), gatherFor)
	require.Zero(t, w.wanted)
	batch, _ := w.take()
	require.Empty(t, batch)
}

func TestWriter_EnoughWritesEndTheWait(t *testing.T) {
	t.Parallel()
	w, pause := idleWriter()
	for range gatherEnough {
		w.enqueue(&op{})
	}
	<-w.kick
	w.wake()
	w.gather(ops(gatherFrom, false), pause)
	require.Len(t, w.kick, 1, "there were enough before it began")

	w, _ = idleWriter()
	w.wanted = gatherEnough
	for range gatherEnough - 1 {
		w.enqueue(&op{})
	}
	require.Empty(t, w.kick)
	w.enqueue(&op{})
	require.Len(t, w.kick, 1)
	batch, _ := w.take()
	require.Len(t, batch, gatherEnough, "and all of them are one batch")
}
