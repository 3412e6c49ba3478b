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

// A reader takes so many records at a time, and no further one once it holds so
// many bytes.
const (
	readAhead      = 64
	readAheadBytes = 256 << 10
)

// Reader follows one log with its own cursor. Next is for one goroutine at a
// time; Close is safe from any.
type Reader struct {
	log *Log

	mu    sync.Mutex // held by Next and, last, by Close; before Log.mu
	next  uint64     // number of the next record to deliver
	begun bool
	buf   []Record

	file *os.File // of the segment being read, nil when reading from memory
	part *settled
	br   *bufio.Reader // of part
	seg  uint64        // its first record

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
		gap = gapRecord(r.next, l.first-1)
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
	if err := r.readFile(seg, end); !errors.Is(err, errTorn) {
		return Record{}, nil, err
	}
	// A power cut spoilt the rest of this segment, which is not the newest one.
	if len(r.buf) > 0 {
		return Record{}, nil, r.closeFile() // what was whole first
	}
	gap = gapRecord(r.next, end-1)
	r.next = end
	return gap, nil, r.closeFile()
}

// gapRecord tells a reader that the records from…to are not to be had.
func gapRecord(from, to uint64) Record {
	return Record{N: to, At: time.Now().UTC(), Kind: KindGap, Data: fmt.Appendf(nil, `{"from":%d,"to":%d}`, from, to)}
}

// settled reads of a growing file what was wholly written when the reader last
// looked: behind that a write may be under way that fails and is taken back.
type settled struct {
	file     *os.File
	off, end int64
}

func (s *settled) Read(p []byte) (int, error) {
	if s.off >= s.end {
		return 0, io.EOF
	}
	n, err := s.file.ReadAt(p[:min(int64(len(p)), s.end-s.off)], s.off)
	s.off += int64(n)
	return n, err
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
	r.part.end = seg.size
	r.buf = r.buf[:0:0]
	size := 0
	for n := r.next; n < end && len(r.buf) < readAhead && size < readAheadBytes; {
		rec, _, err := readRecord(r.br)
		if errors.Is(err, io.EOF) {
			err = errTorn
		}
		if err != nil {
			return fmt.Errorf("cannot read the log of job %s: record %d: %w", r.log.id, n, err)
		}
		if rec.N >= n {
			r.buf = append(r.buf, rec)
			size += len(rec.Data)
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
	r.file, r.part, r.seg = f, &settled{file: f, end: seg.size}, seg.first
	r.br = bufio.NewReaderSize(r.part, 64<<10)
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
	r.file, r.part, r.br = nil, nil, nil
	return f.Close()
}
