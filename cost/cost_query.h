// Computes the cost of calls from their sizes and options, without any tensors.
// The rpc MemoryEstimate and `attnctl estimate --offline` use this.
#ifndef ATTND_COST_COST_QUERY_H_
#define ATTND_COST_COST_QUERY_H_

#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/attention_params.h"
#include "core/attention_problem.h"
#include "core/machine.h"
#include "core/memory_estimator.h"
#include "cost/call_cost.h"

namespace attnd {

// A size, and the name that errors use for it: the name of the size that the
// user gave. For example, if q_len gets its value from seq_len, its name is
// "seq_len".
struct NamedSize {
  int64_t value = 0;
  std::string_view name;
};

// The calls whose memory is computed: `concurrency` calls at the same time, all
// with the same problem. The sizes have the names that they have in
// MemoryEstimateRequest.
struct CostQuery {
  NamedSize seq_len = {0, "seq_len"};
  NamedSize dimensions = {0, "dimensions"};      // default 128
  NamedSize batch = {0, "batch"};                // default 1
  NamedSize num_q_heads = {0, "num_q_heads"};    // default 1
  NamedSize num_kv_heads = {0, "num_kv_heads"};  // default num_q_heads
  NamedSize q_len = {0, "q_len"};                // default seq_len
  NamedSize kv_len = {0, "kv_len"};              // default seq_len
  NamedSize head_dim = {0, "head_dim"};          // default dimensions
  NamedSize v_head_dim = {0, "v_head_dim"};      // default head_dim
  NamedSize threads = {0, "threads"};            // for each call; default 1
  NamedSize concurrency = {0, "concurrency"};    // default 1
  DataType dtype = DataType::kF32;               // of query, key and value
  AttentionOptions options = {};
  OutputOptions outputs = {};
  Transport transport = Transport::kInline;
  MachineInfo machine = {};  // the machine of the server
  // The size of the largest message that the server sends or receives.
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();

  // Returns OK, or INVALID_ARGUMENT that names the first negative size.
  absl::Status CheckSizes() const;
  // Replaces each size that is 0 by its default. Returns OK, or
  // INVALID_ARGUMENT that names a size that has no default or that contradicts
  // the options.
  absl::Status SetDefaults();
};

// The memory that the calls of a CostQuery take. A number that does not fit an
// int64 is kMaxInt64, and the others are exact.
struct QueryCost {
  MemoryEstimate computation;  // of one call
  CallCost call;               // of one call
  int64_t concurrency = 1;     // how many calls run at the same time
  int64_t peak_bytes = 0;      // of all calls together
  // Whether all numbers fit an int64, and the problem is so small that a server
  // does not refuse it with INT64_RANGE.
  bool in_int64_range = true;
};

// Returns the problem of `query`, which may be too large to be computed. Call
// SetDefaults first. INVALID_ARGUMENT names the size or the option that is
// wrong ("q_len", "options.key_lengths[3]").
absl::StatusOr<AttentionProblem> ProblemOf(const CostQuery& query);

// The shapes of the tensors of a query.
struct InputShapes {
  std::vector<int64_t> query;
  std::vector<int64_t> key;
  std::vector<int64_t> value;
};

// Returns the shapes of `query`. Call SetDefaults first.
InputShapes InputShapesOf(const CostQuery& query);

// Returns the memory that `query` takes, or the error of ProblemOf. Call
// SetDefaults first. This is a pure function. Its own time and memory grow with
// the lists in the options, but not with the sizes, so a search can call it
// many times.
absl::StatusOr<QueryCost> CostOf(const CostQuery& query);

// Returns OK if `cost`, which must be the cost of `query`, is in_int64_range.
// Otherwise returns INVALID_ARGUMENT with reason INT64_RANGE that names the
// size to reduce: the largest one of those that make the problem too large.
absl::Status CheckInt64Range(const CostQuery& query, const QueryCost& cost);

}  // namespace attnd

#endif  // ATTND_COST_COST_QUERY_H_
