#include "client/attnctl/offline_estimate.h"

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/attention_problem.h"
#include "core/checked_math.h"
#include "core/field_error.h"
#include "core/machine.h"
#include "core/memory_estimator.h"

namespace attnd::attnctl {
namespace {

constexpr int64_t kDefaultDimensions = 128;

int64_t Or(int64_t value, int64_t fallback) {
  return value != 0 ? value : fallback;
}

Causal CoreCausal(client::Causal causal) {
  switch (causal) {
    case client::Causal::kNone:
      return Causal::kNone;
    case client::Causal::kTopLeft:
      return Causal::kTopLeft;
    case client::Causal::kBottomRight:
      return Causal::kBottomRight;
  }
  return Causal::kNone;
}

// The core names the axes of tensors; whoever typed the flags knows none.
absl::Status NameFlag(const absl::Status& status) {
  static const std::map<std::string, std::string> kFlags = {
      {"query.shape[0]", "--batch"},
      {"query.shape[1]", "--num-q-heads"},
      {"query.shape[2]", "--q-len"},
      {"query.shape[3]", "--head-dim"},
      {"key.shape[0]", "--batch"},
      {"key.shape[1]", "--num-kv-heads"},
      {"key.shape[2]", "--kv-len"},
      {"key.shape[3]", "--head-dim"},
      {"value.shape[3]", "--v-head-dim"},
      {"options.scale", "--scale"},
      {"options.temperature", "--temperature"},
      {"options.block_size", "--block-size"}};
  const auto field = FieldOf(status);
  if (!field) return status;
  const auto flag = kFlags.find(*field);
  return flag == kFlags.end() ? status : WithField(status, flag->second);
}

absl::Status AtLeastOne(const char* flag, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return FieldError(flag, "a number >= 1", absl::StrCat(value));
}

}  // namespace

absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options) {
  const int64_t q_len = Or(options.q_len, options.seq_len);
  const int64_t kv_len = Or(options.kv_len, options.seq_len);
  if (q_len == 0 || kv_len == 0) {
    return FieldError("--seq-len", "a length, or --q-len and --kv-len", "0");
  }
  const int64_t dimensions = Or(options.dimensions, kDefaultDimensions);
  const int64_t head_dim = Or(options.head_dim, dimensions);
  const int64_t v_head_dim = Or(options.v_head_dim, head_dim);
  const int64_t batch = Or(options.batch, 1);
  const int64_t num_q_heads = Or(options.num_q_heads, 1);
  const int64_t num_kv_heads = Or(options.num_kv_heads, num_q_heads);
  const int64_t threads = Or(options.threads, AvailableThreads());
  const int64_t concurrency = Or(options.concurrency, 1);
  for (const absl::Status& status :
       {AtLeastOne("--threads", threads),
        AtLeastOne("--concurrency", concurrency)}) {
    if (!status.ok()) return status;
  }

  const auto problem = AttentionProblem::Create(
      {.shape = {batch, num_q_heads, q_len, head_dim}},
      {.shape = {batch, num_kv_heads, kv_len, head_dim}},
      {.shape = {batch, num_kv_heads, kv_len, v_head_dim}},
      {.scale = options.attention.scale,
       .temperature = options.attention.temperature,
       .block_size = options.attention.block_size,
       .causal = CoreCausal(options.attention.causal),
       .return_lse = options.return_lse});
  if (!problem.ok()) return NameFlag(problem.status());
  const auto estimate =
      MemoryEstimator(MachineInfo::Detect(), threads).Estimate(*problem);
  if (!estimate.ok()) return estimate.status();
  const auto footprint = InlineFootprint(*estimate);
  if (!footprint.ok()) return footprint.status();
  const auto peak_bytes =
      CheckedProduct({footprint->peak_per_request_bytes, concurrency});
  if (!peak_bytes) {
    return FieldError("--concurrency", "a peak that fits an int64",
                      absl::StrCat(concurrency));
  }

  client::MemoryEstimate result;
  result.naive_bytes = estimate->naive_bytes;
  result.flash_bytes = estimate->flash_bytes;
  result.reduction_ratio = estimate->ReductionRatio();
  result.input_bytes = estimate->input_bytes;
  result.output_bytes = estimate->output_bytes;
  result.workspace_bytes = estimate->workspace_bytes;
  result.wire_bytes = footprint->wire_bytes;
  result.peak_per_request_bytes = footprint->peak_per_request_bytes;
  result.peak_bytes = *peak_bytes;
  result.required_message_bytes = footprint->required_message_bytes;
  result.flops = estimate->flops;
  return result;
}

}  // namespace attnd::attnctl
