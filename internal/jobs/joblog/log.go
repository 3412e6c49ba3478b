package joblog

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/cjmd/cjmd/internal/events"
)

// maxUnwritten is how many states may wait in memory for the first other record
// before the file is made for them.
const maxUnwritten = 4096

// Log is one job's log while it is open. Safe from any goroutine.
type Log struct {
	set *Set
	id  string
	dir string

	refs    int           // guarded by Set.mu
	ready   chan struct{} // closed when loaded; openErr is set before
	openErr error

	mu      sync.Mutex // files are written under it: the number and the bytes are one step
	loaded  bool
	early   []events.Event // committed while loading
	next    uint64         // number of the next record
	first   uint64         // oldest record kept
	lastSeq events.Seq     // of the newest state in the log
	final   bool
	ended   bool          // closed for good: nothing is appended any more
	wake    chan struct{} // closed and replaced when a record joins or the log ends
	ring    []Record      // the newest records, the last one being next-1
	ringLen int           // bytes of their data

	// Records that are in no file yet, the last one being next-1: states before
	// the file exists, or while the disk is full.
	unwritten []Record
	segs      []segment
	file      *os.File // of the last segment, opened by the first write
	lost      int      // records refused since the last one that was written
	scratch   []byte
}

// load reads what exists and adds the states that are missing.
func (l *Log) load(ctx context.Context) {
	defer close(l.ready)
	if l.openErr = l.loadSegments(); l.openErr != nil {
		return
	}
	evs, err := l.set.opts.Journal(ctx, l.id, l.lastSeq)
	if err != nil {
		l.openErr = err
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loaded = true
	for _, e := range append(evs, l.early...) {
		l.stateLocked(e)
	}
	l.early = nil
}

// Release gives the log back; the last user closes its file.
func (l *Log) Release() {
	s := l.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.refs--; l.refs == 0 {
		if s.logs[l.id] == l {
			delete(s.logs, l.id)
		}
		if err := l.shut(); err != nil {
			s.opts.Log.Warn("cannot close a job log", zap.String("job", l.id), zap.Error(err))
		}
	}
}

// shut ends the log in memory; what it lacks on disk is in the journal.
func (l *Log) shut() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		l.wakeLocked()
	}
	f := l.file
	l.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

func (l *Log) wakeLocked() {
	close(l.wake)
	l.wake = make(chan struct{})
}

// committed takes one event of the job from the journal.
func (l *Log) committed(e events.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.loaded {
		l.early = append(l.early, e)
		return
	}
	l.stateLocked(e)
}

// stateLocked appends a state unless the log has it.
func (l *Log) stateLocked(e events.Event) {
	if l.ended || l.final || e.Seq <= l.lastSeq || e.Kind == events.JobPruned {
		return
	}
	l.lastSeq = e.Seq
	l.final = isFinal(string(e.Kind))
	data := append(strconv.AppendUint([]byte(`{"seq":`), uint64(e.Seq), 10), '}')
	if len(e.Data) > 2 { // not {}
		data = append(append(data[:len(data)-1], ','), e.Data[1:]...)
	}
	rec := Record{N: l.next, At: e.At, Kind: string(e.Kind), Data: data, seq: e.Seq}
	l.unwritten = append(l.unwritten, rec)
	l.joinLocked(rec)
	if len(l.segs) > 0 || len(l.unwritten) > maxUnwritten {
		// On failure the state stays unwritten: it has its number, and the journal has it.
		if err := l.flushLocked(); err != nil {
			l.set.opts.Log.Warn("cannot write a job log", zap.String("job", l.id), zap.Error(err))
		}
	}
}

func isFinal(kind string) bool {
	switch events.Kind(kind) {
	case events.JobCompleted, events.JobFailed, events.JobCancelled:
		return true
	}
	return false
}

// Append adds a record that is no state. data is one line of JSON and belongs
// to the log from now on. A record that cannot be written has no number; the
// log says how many were lost once it can be written again.
func (l *Log) Append(kind string, at time.Time, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.final {
		return ErrEnded
	}
	if err := l.appendLocked(kind, at, data); err != nil {
		l.lost++
		return fmt.Errorf("cannot write the log of job %s: %w", l.id, err)
	}
	return nil
}

func (l *Log) appendLocked(kind string, at time.Time, data []byte) error {
	if err := l.flushLocked(); err != nil {
		return err
	}
	if l.lost > 0 {
		note, err := json.Marshal(map[string]any{"time": at.UTC(), "level": "error", "logger": "cjmd",
			"message": fmt.Sprintf("%d records could not be stored", l.lost)})
		if err != nil {
			return err
		}
		if err := l.writeLocked(Record{N: l.next, At: at, Kind: KindLog, Data: note}); err != nil {
			return err
		}
		l.lost = 0
		l.joinLocked(Record{N: l.next, At: at, Kind: KindLog, Data: note})
	}
	rec := Record{N: l.next, At: at, Kind: kind, Data: data}
	if err := l.writeLocked(rec); err != nil {
		return err
	}
	l.joinLocked(rec)
	return nil
}

// flushLocked writes what is only in memory.
func (l *Log) flushLocked() error {
	for len(l.unwritten) > 0 {
		if err := l.writeLocked(l.unwritten[0]); err != nil {
			return err
		}
		l.unwritten = l.unwritten[1:]
	}
	l.unwritten = nil
	return nil
}

// joinLocked makes a record visible to readers.
func (l *Log) joinLocked(rec Record) {
	l.next = rec.N + 1
	lim := l.set.opts.Limits
	if rec.seq == 0 && len(rec.Data) > lim.RingBytes { // is in the file: not worth its memory
		l.ring, l.ringLen = nil, 0
		l.wakeLocked()
		return
	}
	l.ring = append(l.ring, rec)
	l.ringLen += len(rec.Data)
	for len(l.ring) > 1 && (len(l.ring) > lim.RingRecords || l.ringLen > lim.RingBytes) {
		l.ringLen -= len(l.ring[0].Data)
		l.ring[0] = Record{} // let go of its data
		l.ring = l.ring[1:]
	}
	l.wakeLocked()
}

// memoryLocked returns the records from n on that are in memory, nil when n is
// only in a file.
func (l *Log) memoryLocked(n uint64) []Record {
	for _, recs := range [][]Record{l.ring, l.unwritten} {
		if len(recs) > 0 && n >= recs[0].N && n < l.next {
			return recs[n-recs[0].N:]
		}
	}
	return nil
}
