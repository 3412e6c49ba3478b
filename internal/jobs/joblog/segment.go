package joblog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/events"
)

// A segment is a header and records:
//
//	header  "CJMLOG1\n" | u64 number of its first record | u64 journal number of the last state before it | u32 CRC-32C of those
//	record  u32 length of the body | u32 CRC-32C of the body | body
//	body    u64 number | i64 Unix nanoseconds | u64 journal number or 0 | u8 length of the kind | kind | data
//
// All numbers are little-endian. Its file is named by its first record.
type segment struct {
	first uint64
	size  int64
	path  string
}

const (
	magic      = "CJMLOG1\n"
	headerSize = 8 + 8 + 8 + 4
	frameSize  = 8
	bodyFixed  = 8 + 8 + 8 + 1
	// maxBody refuses absurd lengths in damaged files.
	maxBody = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errTorn = errors.New("record is torn")

func appendHeader(b []byte, first uint64, lastSeq events.Seq) []byte {
	n := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint64(b, uint64(lastSeq))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
}

func readHeader(r io.Reader) (first uint64, lastSeq events.Seq, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, errTorn
	}
	n := headerSize - 4
	if string(h[:8]) != magic || crc32.Checksum(h[:n], castagnoli) != binary.LittleEndian.Uint32(h[n:]) {
		return 0, 0, errTorn
	}
	return binary.LittleEndian.Uint64(h[8:]), events.Seq(binary.LittleEndian.Uint64(h[16:])), nil
}

func appendRecord(b []byte, r Record) []byte {
	start := len(b)
	b = append(b, make([]byte, frameSize)...)
	b = binary.LittleEndian.AppendUint64(b, r.N)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.At.UnixNano()))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.seq))
	b = append(b, byte(len(r.Kind)))
	b = append(append(b, r.Kind...), r.Data...)
	body := b[start+frameSize:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(body, castagnoli))
	return b
}

// readRecord returns the next record and its size in the file; io.EOF at a
// clean end, errTorn where the rest is no record.
func readRecord(r io.Reader) (Record, int64, error) {
	var f [frameSize]byte
	if n, err := io.ReadFull(r, f[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return Record{}, 0, io.EOF
		}
		return Record{}, 0, errTorn
	}
	size := binary.LittleEndian.Uint32(f[:])
	if size < bodyFixed || size > maxBody {
		return Record{}, 0, errTorn
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(size))) // grows as it reads: a damaged length allocates nothing
	if err != nil || len(body) != int(size) || crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(f[4:]) {
		return Record{}, 0, errTorn
	}
	k := int(body[bodyFixed-1])
	if bodyFixed+k > len(body) {
		return Record{}, 0, errTorn
	}
	return Record{
		N:    binary.LittleEndian.Uint64(body),
		At:   time.Unix(0, int64(binary.LittleEndian.Uint64(body[8:]))).UTC(),
		seq:  events.Seq(binary.LittleEndian.Uint64(body[16:])),
		Kind: string(body[bodyFixed : bodyFixed+k]),
		Data: body[bodyFixed+k:],
	}, frameSize + int64(size), nil
}

// loadSegments finds the segments of the log and reads the last one to its end,
// cutting off what a power cut left torn.
func (l *Log) loadSegments() error {
	names, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, de := range names { // sorted by name, which is by number
		first, err := strconv.ParseUint(strings.TrimSuffix(de.Name(), ".seg"), 10, 64)
		if err != nil || !strings.HasSuffix(de.Name(), ".seg") {
			continue
		}
		info, err := de.Info()
		if err != nil {
			return err
		}
		l.segs = append(l.segs, segment{first: first, size: info.Size(), path: filepath.Join(l.dir, de.Name())})
	}
	for len(l.segs) > 0 {
		last := &l.segs[len(l.segs)-1]
		err := l.scan(last)
		if err == nil {
			l.first = l.segs[0].first
			return nil
		}
		if !errors.Is(err, errTorn) {
			return err
		}
		// Not even its header is whole: nothing in it was ever readable.
		if err := os.Remove(last.path); err != nil {
			return err
		}
		l.segs = l.segs[:len(l.segs)-1]
	}
	return nil
}

// scan reads a segment from its start and truncates it behind its last whole record.
func (l *Log) scan(seg *segment) error {
	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 256<<10)
	first, lastSeq, err := readHeader(r)
	if err != nil {
		return err
	}
	if first != seg.first {
		return errTorn
	}
	l.next, l.lastSeq, l.final = first, lastSeq, false
	end := int64(headerSize)
	for {
		rec, n, err := readRecord(r)
		if errors.Is(err, io.EOF) || errors.Is(err, errTorn) || err == nil && rec.N != l.next {
			break
		}
		if err != nil {
			return err
		}
		end += n
		l.next++
		if rec.seq != 0 {
			l.lastSeq, l.final = rec.seq, isFinal(rec.Kind)
		}
	}
	if end < seg.size {
		if err := os.Truncate(seg.path, end); err != nil {
			return err
		}
		seg.size = end
	}
	return nil
}

// writeLocked appends one record to the file of the last segment, beginning a
// new segment where needed. A write that fails leaves no trace.
func (l *Log) writeLocked(rec Record) error {
	lim := l.set.opts.Limits
	l.scratch = appendRecord(l.scratch[:0], rec)
	if n := len(l.segs); n == 0 || l.segs[n-1].size > headerSize && l.segs[n-1].size+int64(len(l.scratch)) > lim.SegmentBytes {
		if err := l.rollLocked(rec, max(int64(len(l.scratch))+headerSize, lim.SegmentBytes)); err != nil {
			return err
		}
	}
	seg := &l.segs[len(l.segs)-1]
	if l.file == nil {
		f, err := os.OpenFile(seg.path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		l.file = f
	}
	n, err := l.file.WriteAt(l.scratch, seg.size)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.file.Truncate(seg.size))
		}
		return err
	}
	seg.size += int64(n)
	if cap(l.scratch) > 1<<20 {
		l.scratch = nil
	}
	return nil
}

// rollLocked begins a segment with rec, which may grow to size, and drops the
// oldest ones beyond the bound.
func (l *Log) rollLocked(rec Record, size int64) error {
	if len(l.segs) == 0 {
		if err := os.MkdirAll(l.dir, 0o700); err != nil {
			return err
		}
	}
	path := filepath.Join(l.dir, fmt.Sprintf("%020d.seg", rec.N))
	lastSeq := l.lastSeq
	if len(l.unwritten) > 0 { // the state being written, or a later one, is not before this segment
		lastSeq = l.unwritten[0].seq - 1
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(appendHeader(nil, rec.N, lastSeq), 0); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	if l.file != nil {
		err = l.file.Close()
	}
	l.file = f
	l.segs = append(l.segs, segment{first: rec.N, size: headerSize, path: path})
	var total int64
	for _, s := range l.segs {
		total += s.size
	}
	for len(l.segs) > 1 && total+size > l.set.opts.Limits.TotalBytes {
		err = errors.Join(err, os.Remove(l.segs[0].path))
		total -= l.segs[0].size
		l.segs = l.segs[1:]
		l.first = l.segs[0].first
	}
	return err
}
