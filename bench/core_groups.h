// Which cases core_bench measures, and which of them take turns.
#ifndef ATTND_BENCH_CORE_GROUPS_H_
#define ATTND_BENCH_CORE_GROUPS_H_

#include <string>
#include <vector>

#include "bench/core_case.h"

namespace attnd::bench {

// Cases that take turns. Where there are more than one, each is also compared
// with the first.
using Group = std::vector<Case>;

// All of them; those of two threads where the process may use two processors.
std::vector<Group> CoreGroups();

// "name/dtype/head_dim/q_len/threads " of each case, what --filter looks in.
std::string NamesOf(const Group& group);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_CORE_GROUPS_H_
