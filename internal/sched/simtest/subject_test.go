package simtest

import (
	"github.com/cjmd/cjmd/internal/sched"
	"github.com/cjmd/cjmd/internal/sched/policy"
)

// subject is the policy that the properties are about.
func subject() sched.Policy { return policy.Reserve(policy.ReserveOptions{}) }
