// Costs a problem of which only the sizes and the options are known. This is
// what MemoryEstimate and `attnctl estimate --offline` ask for.
#ifndef ATTND_COST_COST_QUERY_H_
#define ATTND_COST_COST_QUERY_H_

#include <cstdint>
#include <limits>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/attention_params.h"
#include "core/machine.h"
#include "core/memory_estimator.h"
#include "cost/call_cost.h"

namespace attnd {

// A size, and the name of the member of CostQuery in which it was given. Errors
// have this name: a q_len that is not given is that of "seq_len".
struct NamedSize {
  int64_t value = 0;
  std::string_view name;
};

// Asks what a number of calls cost that compute one problem at the same time.
// The sizes are named as in MemoryEstimateRequest.
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
  NamedSize threads = {0, "threads"};            // a call's; default 1
  NamedSize concurrency = {0, "concurrency"};    // default 1
  DataType dtype = DataType::kF32;               // of query, key and value
  AttentionOptions options = {};
  OutputOptions outputs = {};
  Transport transport = Transport::kInline;
  MachineInfo machine = {};
  // The largest message of the server.
  int64_t max_message_bytes = std::numeric_limits<int64_t>::max();

  // INVALID_ARGUMENT names the first size that is negative.
  absl::Status CheckSizes() const;
  // Gives each size that is 0 its default. INVALID_ARGUMENT names a size that
  // is missing or that contradicts the options.
  absl::Status SetDefaults();
};

struct QueryCost {
  MemoryEstimate computation;  // of one call
  CallCost call;               // of one call
  int64_t concurrency = 1;     // how many calls run at the same time
  int64_t peak_bytes = 0;      // of all calls together
};

// Returns the cost of a query that has its defaults. This is a pure function
// whose time and memory depend on the lists in the options and on the batch,
// but not on the lengths, so a search may call it thousands of times.
// INVALID_ARGUMENT names the size or the option at fault ("q_len",
// "options.key_lengths[3]"), and has the reason INT64_RANGE if a figure does
// not fit a signed 64-bit number.
absl::StatusOr<QueryCost> CostOf(const CostQuery& query);

// Returns `query` with sequences that are `factor` times as long. The lengths,
// offsets and shapes in its options change in proportion.
CostQuery Scaled(const CostQuery& query, double factor);

}  // namespace attnd

#endif  // ATTND_COST_COST_QUERY_H_
