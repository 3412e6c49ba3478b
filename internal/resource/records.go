package resource

import "time"

// ClaimRecord is a claim as it is journalled before a worker is started, so that
// a daemon that died knows what it had given away.
type ClaimRecord struct {
	Owner    string // instance, job id
	Kind     string
	Instance string
	Device   DeviceID
	Bytes    Bytes
	Phase    string
	Since    time.Time
}

// Lease is memory of a device that its owner keeps for programs that are none
// of ours.
type Lease struct {
	ID        string
	Device    DeviceID
	Bytes     Bytes
	Holder    string // who asked for it
	Note      string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: until it is ended
}
