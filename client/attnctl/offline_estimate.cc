#include "client/attnctl/offline_estimate.h"

#include <optional>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/attention_options.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "core/attention_params.h"
#include "core/machine.h"
#include "cost/cost_query.h"
#include "cost/largest_fit.h"

namespace attnd::attnctl {
namespace {

// Returns the type and the shape of a tensor. The costs depend on nothing else
// of it.
std::optional<TensorSpec> SpecOf(
    const std::optional<client::ConstTensor>& tensor) {
  if (!tensor) return std::nullopt;
  return TensorSpec{tensor->data.type(), tensor->shape};
}

AttentionOptions CoreOptions(const client::AttentionOptions& in) {
  AttentionOptions out;
  ForEachOption([&](const char*, auto member, const auto&...) {
    const auto& from = member(in);
    if constexpr (std::is_same_v<decltype(from),
                                 const std::optional<client::ConstTensor>&>) {
      member(out) = SpecOf(from);
    } else {
      member(out) = from;
    }
  });
  return out;
}

// Returns `status` with the name of a flag instead of the path of a field. For
// example, options.key_lengths[0] becomes --key-lengths[0], and
// options.mask.shape becomes --mask-shape.
absl::Status NameFlag(const absl::Status& status) {
  const auto field = FieldOf(status);
  if (!field) return status;
  return WithField(
      status,
      absl::StrCat("--", absl::StrReplaceAll(*field, {{"options.", ""},
                                                      {"_", "-"},
                                                      {".shape", "-shape"}})));
}

CostQuery QueryWithoutDefaults(const client::MemoryEstimateOptions& options,
                               const CostLimits& limits) {
  CostQuery query{.dtype = options.dtype,
                  .options = CoreOptions(options.attention),
                  .outputs = {.return_lse = options.return_lse,
                              .output_dtype = options.output_dtype},
                  .transport = options.transport,
                  .machine = MachineInfo::Detect(),
                  .max_message_bytes = limits.max_message_bytes};
  query.seq_len.value = options.seq_len;
  query.dimensions.value = options.dimensions;
  query.batch.value = options.batch;
  query.num_q_heads.value = options.num_q_heads;
  query.num_kv_heads.value = options.num_kv_heads;
  query.q_len.value = options.q_len;
  query.kv_len.value = options.kv_len;
  query.head_dim.value = options.head_dim;
  query.v_head_dim.value = options.v_head_dim;
  query.threads.value =
      options.threads != 0 ? options.threads : AvailableThreads();
  query.concurrency.value = options.concurrency;
  return query;
}

client::MemoryEstimate ResultOf(const QueryCost& cost) {
  const MemoryEstimate& computation = cost.computation;
  client::MemoryEstimate result;
  result.naive_bytes = computation.naive_bytes;
  result.flash_bytes = computation.flash_bytes;
  result.reduction_ratio = computation.ReductionRatio();
  result.input_bytes = computation.input_bytes;
  result.output_bytes = computation.output_bytes;
  result.workspace_bytes = computation.workspace_bytes;
  result.wire_bytes = cost.call.wire_bytes;
  result.peak_per_request_bytes = cost.call.peak_bytes;
  result.peak_bytes = cost.peak_bytes;
  result.required_message_bytes = cost.call.required_message_bytes;
  result.flops = computation.flops;
  return result;
}

// Returns the result. Errors have the names of the contract.
absl::StatusOr<client::MemoryEstimate> Answer(
    const client::MemoryEstimateOptions& options, CostLimits limits) {
  if (options.budget_bytes < 0) {
    return FieldError("budget", "a number >= 0",
                      absl::StrCat(options.budget_bytes));
  }
  if (options.budget_bytes != 0) limits.budget_bytes = options.budget_bytes;
  CostQuery query = QueryWithoutDefaults(options, limits);
  ATTND_RETURN_IF_ERROR(query.CheckSizes());
  if (options.goal == EstimateGoal::kEstimate) {
    ATTND_RETURN_IF_ERROR(query.SetDefaults());
    ATTND_ASSIGN_OR_RETURN(const QueryCost cost, CostOf(query));
    client::MemoryEstimate result = ResultOf(cost);
    if (limits.budget_bytes == 0) {
      if (!cost.in_int64_range) result.limiting_factor = kInt64RangeLimit;
      return result;
    }
    const LimitCheck check = CheckLimits(query, cost, limits);
    result.fits = check.fits;
    result.limiting_factor = check.limiting_factor;
    return result;
  }
  if (limits.budget_bytes == 0) {
    return FieldError("budget",
                      "a number of bytes, because without a server nothing "
                      "else limits the memory",
                      "0");
  }
  ATTND_ASSIGN_OR_RETURN(const LargestFit largest,
                         FindLargestFit(query, options.goal, limits));
  client::MemoryEstimate result = ResultOf(largest.cost);
  result.fits = largest.size > 0;
  result.limiting_factor = largest.limiting_factor;
  result.largest = largest.size;
  return result;
}

absl::Status SetAllDefaults(CostQuery& query) {
  ATTND_RETURN_IF_ERROR(query.CheckSizes());
  return query.SetDefaults();
}

}  // namespace

absl::StatusOr<CostQuery> QueryOf(
    const client::MemoryEstimateOptions& options) {
  CostQuery query = QueryWithoutDefaults(options, CostLimits());
  const absl::Status status = SetAllDefaults(query);
  if (!status.ok()) return NameFlag(status);
  return query;
}

absl::Status CheckComputable(const client::MemoryEstimateOptions& options) {
  ATTND_ASSIGN_OR_RETURN(const CostQuery query, QueryOf(options));
  ATTND_ASSIGN_OR_RETURN(const QueryCost cost, CostOf(query));
  return NameFlag(CheckInt64Range(query, cost));
}

absl::StatusOr<client::MemoryEstimate> EstimateOffline(
    const client::MemoryEstimateOptions& options, CostLimits limits) {
  absl::StatusOr<client::MemoryEstimate> result = Answer(options, limits);
  if (!result.ok()) return NameFlag(result.status());
  return result;
}

}  // namespace attnd::attnctl
