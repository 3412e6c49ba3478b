package joblog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// readAhead is how many records a reader takes at a time.
const readAhead = 64

// Reader follows one log with its own cursor. Next is for one goroutine at a
// time; Close is safe from any.
type Reader struct {
	log *Log

	mu    sync.Mutex // held by Next and, last, by Close; before Log.mu
	next  uint64     // number of the next record to deliver
	begun bool
	buf   []Record

	file *os.File // of the segment being read, nil when reading from memory
	br   *bufio.Reader
	seg  uint64 // its first record

	once sync.Once
	done chan struct{}
}

// Close ends the reader; a Next that waits returns io.EOF. Idempotent.
func (r *Reader) Close() error {
	var err error
	r.once.Do(func() {
		close(r.done)
		r.mu.Lock() // waits for a Next to return
		err = r.closeFile()
		r.mu.Unlock()
		r.log.Release()
	})
	return err
}

// Newest returns the number of the newest record now; a reader that does not
// want to follow stops there.
func (r *Reader) Newest() uint64 {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	return r.log.next - 1
}

// Next returns the next record, waiting for it if need be: io.EOF behind the
// final state or after Close, *ResetError once when the log does not reach as
// far as the reader knew, ctx's error. A hole is told as one record of KindGap
// whose N is the last missing number.
func (r *Reader) Next(ctx context.Context) (Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		select {
		case <-r.done:
			return Record{}, io.EOF
		case <-ctx.Done():
			return Record{}, context.Cause(ctx)
		default:
		}
		if len(r.buf) > 0 {
			rec := r.buf[0]
			r.buf = r.buf[1:]
			r.next = rec.N + 1
			return rec, nil
		}
		gap, wait, err := r.fill()
		if err != nil || gap.N != 0 {
			return gap, err
		}
		if wait != nil {
			select {
			case <-wait:
			case <-r.done:
			case <-ctx.Done():
			}
		}
	}
}

// fill gets the next records into buf, or says what to wait for.
func (r *Reader) fill() (gap Record, wait <-chan struct{}, err error) {
	l := r.log
	l.mu.Lock()
	if !r.begun {
		r.begun = true
		if r.next > l.next {
			reset := &ResetError{After: r.next - 1, Oldest: l.first, Newest: l.next - 1}
			r.next = l.first
			l.mu.Unlock()
			return Record{}, nil, reset
		}
	}
	if r.next < l.first {
		gap = Record{N: l.first - 1, At: time.Now().UTC(), Kind: KindGap,
			Data: fmt.Appendf(nil, `{"from":%d,"to":%d}`, r.next, l.first-1)}
		r.next = l.first
		l.mu.Unlock()
		return gap, nil, nil
	}
	if r.next == l.next {
		wake, over := l.wake, l.final || l.ended
		l.mu.Unlock()
		if over {
			return Record{}, nil, io.EOF
		}
		return Record{}, wake, nil
	}
	if recs := l.memoryLocked(r.next); recs != nil {
		r.buf = append(r.buf[:0:0], recs[:min(len(recs), readAhead)]...)
		l.mu.Unlock()
		return Record{}, nil, r.closeFile()
	}
	seg, end := l.segmentLocked(r.next)
	l.mu.Unlock()
	return Record{}, nil, r.readFile(seg, end)
}

// segmentLocked returns the segment that holds n and the first number that is
// not in it.
func (l *Log) segmentLocked(n uint64) (segment, uint64) {
	end := l.next
	if len(l.unwritten) > 0 {
		end = l.unwritten[0].N
	}
	for i := len(l.segs) - 1; i > 0; i-- {
		if n >= l.segs[i].first {
			return l.segs[i], end
		}
		end = l.segs[i].first
	}
	return l.segs[0], end
}

// readFile reads ahead from a segment; records before end are whole in it.
func (r *Reader) readFile(seg segment, end uint64) error {
	if r.file == nil || r.seg != seg.first {
		if err := r.openSegment(seg); err != nil || r.file == nil {
			return err
		}
	}
	r.buf = r.buf[:0:0]
	for n := r.next; n < end && len(r.buf) < readAhead; {
		rec, _, err := readRecord(r.br)
		if err != nil {
			return fmt.Errorf("cannot read the log of job %s: record %d: %w", r.log.id, n, err)
		}
		if rec.N >= n {
			r.buf = append(r.buf, rec)
			n = rec.N + 1
		}
	}
	return nil
}

func (r *Reader) openSegment(seg segment) error {
	if err := r.closeFile(); err != nil {
		return err
	}
	f, err := os.Open(seg.path)
	if errors.Is(err, fs.ErrNotExist) {
		r.log.mu.Lock()
		dropped := r.next < r.log.first
		r.log.mu.Unlock()
		if dropped {
			return nil // the next look tells the gap
		}
	}
	if err != nil {
		return fmt.Errorf("cannot read the log of job %s: %w", r.log.id, err)
	}
	r.file, r.br, r.seg = f, bufio.NewReaderSize(f, 64<<10), seg.first
	if _, _, err := readHeader(r.br); err != nil {
		return fmt.Errorf("cannot read the log of job %s: %w", r.log.id, errors.Join(err, r.closeFile()))
	}
	return nil
}

func (r *Reader) closeFile() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file, r.br = nil, nil
	return f.Close()
}
