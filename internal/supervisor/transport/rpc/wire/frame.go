// Package wire is the lowest layer of the worker protocol: frames on a byte
// stream (frame.go, writer.go) and the JSON-RPC headers in them (header.go,
// object.go, append.go). It keeps no conversation; that is package rpc. A Reader
// belongs to one goroutine; a Writer may be used by many. docs/worker-protocol.md
// is the contract.
package wire

import (
	"encoding/binary"
	"errors"
	"io"
)

// PrefixLen is the length of the two lengths before each frame.
const PrefixLen = 8

// The limits of version 1 that hold until hello names others.
const (
	DefaultMaxHeader  = 64 << 10
	DefaultMaxPayload = 256 << 20
)

const (
	readBuffer = 32 << 10 // small frames are read whole, by one system call
	trustFirst = 1 << 20  // so much of a long payload must arrive before all of it is allocated
	keepBig    = 4 << 20  // a larger scratch buffer is not kept for the next frame
)

// Limits of both lengths. Zero means the default of version 1.
type Limits struct {
	MaxHeader  int
	MaxPayload int
}

// OrDefaults fills in what is zero.
func (l Limits) OrDefaults() Limits {
	if l.MaxHeader <= 0 {
		l.MaxHeader = DefaultMaxHeader
	}
	if l.MaxPayload <= 0 {
		l.MaxPayload = DefaultMaxPayload
	}
	return l
}

// Reader cuts a byte stream into frames. Payloads are handed out without a
// parse and, where they fit the buffer, without a copy.
type Reader struct {
	src    io.Reader
	limits Limits

	buf  []byte
	r, w int    // buf[r:w] is read and not yet consumed
	left int    // payload bytes of the current frame that nobody took yet
	big  []byte // reused for payloads that do not fit buf
}

// NewReader reads frames from src.
func NewReader(src io.Reader, limits Limits) *Reader {
	return &Reader{src: src, limits: limits.OrDefaults(), buf: make([]byte, readBuffer)}
}

// Next returns the header of the next frame, valid until the following Next,
// and the length of its payload; a payload not taken is skipped. Errors: io.EOF
// at the end of a frame, *ProtocolError, or that of the source.
func (r *Reader) Next() (header []byte, payloadLen int, err error) {
	if r.left > 0 {
		if _, err := r.Payload(); err != nil {
			return nil, 0, err
		}
	}
	if err := r.fill(PrefixLen, "the 8 bytes of the lengths"); err != nil {
		return nil, 0, err
	}
	hlen := binary.BigEndian.Uint32(r.buf[r.r:])
	plen := binary.BigEndian.Uint32(r.buf[r.r+4:])
	switch {
	case hlen == 0:
		return nil, 0, Broken(EmptyHeader, "a frame begins with % x: its header is empty", r.buf[r.r:r.r+PrefixLen])
	case uint64(hlen) > uint64(r.limits.MaxHeader):
		return nil, 0, Broken(HeaderTooLong, "a frame begins with % x: a header of %d bytes, the limit is %d",
			r.buf[r.r:r.r+PrefixLen], hlen, r.limits.MaxHeader)
	case uint64(plen) > uint64(r.limits.MaxPayload):
		return nil, 0, Broken(PayloadTooLong, "a frame begins with % x: a payload of %d bytes, the limit is %d",
			r.buf[r.r:r.r+PrefixLen], plen, r.limits.MaxPayload)
	}
	h, p := int(hlen), int(plen)
	r.makeRoom(PrefixLen+h, PrefixLen+h+p)
	if err := r.fill(PrefixLen+h, "its header"); err != nil {
		return nil, 0, err
	}
	header = r.buf[r.r+PrefixLen : r.r+PrefixLen+h]
	r.r += PrefixLen + h
	r.left = p
	return header, p, nil
}

// Payload returns the payload of the current frame, valid until the next call
// of any method; nil when it is empty or was taken.
func (r *Reader) Payload() ([]byte, error) {
	n := r.left
	if n == 0 {
		return nil, nil
	}
	if r.r+n <= len(r.buf) {
		if err := r.fill(n, "its payload"); err != nil {
			return nil, err
		}
		p := r.buf[r.r : r.r+n : r.r+n]
		r.r, r.left = r.r+n, 0
		return p, nil
	}
	p, err := r.readBig(r.big, n)
	if err == nil && n <= keepBig {
		r.big = p
	}
	return p, err
}

// TakePayload is Payload, but what it returns belongs to the caller.
func (r *Reader) TakePayload() ([]byte, error) {
	n := r.left
	if n == 0 {
		return nil, nil
	}
	if r.r+n > len(r.buf) {
		return r.readBig(nil, n)
	}
	p, err := r.Payload()
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, n), p...), nil
}

// readBig reads n payload bytes into dst, or into new memory when dst is too
// small. A length alone must not make us allocate 256 MiB, so the first part
// has to arrive before.
func (r *Reader) readBig(dst []byte, n int) ([]byte, error) {
	have := 0
	if cap(dst) < n {
		first := make([]byte, min(n, trustFirst))
		if err := r.readInto(first); err != nil {
			return nil, err
		}
		if have = len(first); have == n {
			r.left = 0
			return first, nil
		}
		dst = make([]byte, n)
		copy(dst, first)
	}
	dst = dst[:n]
	if err := r.readInto(dst[have:]); err != nil {
		return nil, err
	}
	r.left = 0
	return dst, nil
}

func (r *Reader) readInto(dst []byte) error {
	n := copy(dst, r.buf[r.r:r.w])
	r.r += n
	if n == len(dst) {
		return nil
	}
	m, err := io.ReadFull(r.src, dst[n:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Broken(Truncated, "end of file after %d of at least %d bytes of a payload", n+m, len(dst))
	}
	return err
}

// makeRoom sees to it that header bytes can lie in one piece behind r.r, and the
// whole frame too where the buffer is long enough for it.
func (r *Reader) makeRoom(header, whole int) {
	want := header
	if whole <= len(r.buf) {
		want = whole
	}
	if r.r+want <= len(r.buf) {
		return
	}
	dst := r.buf
	if want > len(dst) {
		dst = make([]byte, want)
	}
	r.w = copy(dst, r.buf[r.r:r.w])
	r.r, r.buf = 0, dst
}

// fill reads until n bytes lie behind r.r. The room must be there, but for the
// prefix, whose room is made here.
func (r *Reader) fill(n int, what string) error {
	if r.r == r.w && r.left == 0 {
		r.r, r.w = 0, 0 // nothing is held: start over without moving bytes
	}
	if r.r+n > len(r.buf) {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w-r.r < n {
		m, err := r.src.Read(r.buf[r.w:])
		r.w += m
		if err == nil || r.w-r.r >= n {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if r.w == r.r && n == PrefixLen && r.left == 0 {
			return io.EOF
		}
		return Broken(Truncated, "end of file inside a frame, in %s: %d of %d bytes", what, r.w-r.r, n)
	}
	return nil
}
