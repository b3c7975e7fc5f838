// Lists the cases that core_bench measures, and which of them take turns.
#ifndef ATTND_BENCH_CORE_GROUPS_H_
#define ATTND_BENCH_CORE_GROUPS_H_

#include <string>
#include <vector>

#include "bench/core_case.h"

namespace attnd::bench {

// Cases that take turns. If a group has several cases, each is also compared
// with the first one.
using Group = std::vector<Case>;

// Returns all groups. Those with two threads are only included if the process
// can use two processors.
std::vector<Group> CoreGroups();

// Returns "name/dtype/head_dim/q_len/threads " of each case. --filter looks for
// its text in this.
std::string NamesOf(const Group& group);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_GROUPS_H_
