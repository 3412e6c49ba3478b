package simtest

import (
	"time"

	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

// subject is the policy that the properties are about.
func subject() sched.Policy { return policy.Queue(100 * time.Hour) }
