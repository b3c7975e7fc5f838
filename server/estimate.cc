#include "server/estimate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/attention_problem.h"
#include "core/checked_math.h"
#include "core/field_error.h"
#include "core/memory_estimator.h"
#include "server/request_codec.h"
#include "server/status_convert.h"

namespace attnd::server {
namespace {

using Request = v1::MemoryEstimateRequest;

constexpr int64_t kDefaultDimensions = 128;

// A number of the request and the field that it came from.
struct Number {
  int64_t value = 0;
  absl::string_view field;
};

Number Or(Number number, Number otherwise) {
  return number.value != 0 ? number : otherwise;
}

// The problem's extents, each with the field to blame for it.
struct Extents {
  Number batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim;
};

Extents ExtentsOf(const Request& in) {
  const Number seq{in.seq_len(), "seq_len"};
  const Number dimensions =
      Or({in.dimensions(), "dimensions"}, {kDefaultDimensions, "dimensions"});
  Extents out;
  out.batch = Or({in.batch(), "batch"}, {1, "batch"});
  out.q_heads = Or({in.num_q_heads(), "num_q_heads"}, {1, "num_q_heads"});
  out.kv_heads = Or({in.num_kv_heads(), "num_kv_heads"}, out.q_heads);
  out.q_len = Or({in.q_len(), "q_len"}, seq);
  out.kv_len = Or({in.kv_len(), "kv_len"}, seq);
  out.head_dim = Or({in.head_dim(), "head_dim"}, dimensions);
  out.v_head_dim = Or({in.v_head_dim(), "v_head_dim"}, out.head_dim);
  return out;
}

absl::Status CheckNumbers(const Request& in) {
  const Number numbers[] = {{in.seq_len(), "seq_len"},
                            {in.dimensions(), "dimensions"},
                            {in.batch(), "batch"},
                            {in.num_q_heads(), "num_q_heads"},
                            {in.num_kv_heads(), "num_kv_heads"},
                            {in.q_len(), "q_len"},
                            {in.kv_len(), "kv_len"},
                            {in.head_dim(), "head_dim"},
                            {in.v_head_dim(), "v_head_dim"},
                            {in.threads(), "threads"},
                            {in.concurrency(), "concurrency"}};
  for (const auto& [value, field] : numbers) {
    if (value < 0) {
      return FieldError(std::string(field), "a number >= 0",
                        absl::StrCat(value));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTransport(const Request& in) {
  switch (in.transport()) {
    case v1::TRANSPORT_UNSPECIFIED:
    case v1::TRANSPORT_INLINE:
      return absl::OkStatus();
    case v1::TRANSPORT_STREAM:
    case v1::TRANSPORT_SHARED_MEMORY:
      return NotImplementedError("transport",
                                 v1::Transport_Name(in.transport()));
    default:
      return FieldError("transport", "INLINE, STREAM or SHARED_MEMORY",
                        absl::StrCat(static_cast<int>(in.transport())));
  }
}

absl::Status CheckInverseGoal(absl::string_view field, int64_t budget_bytes) {
  if (budget_bytes < 0) {
    return FieldError(std::string(field), "a number >= 0",
                      absl::StrCat(budget_bytes));
  }
  return NotImplementedError(field, "an inverse goal");
}

absl::Status CheckGoal(const Request& in) {
  switch (in.goal_case()) {
    case Request::kMaxSeqLenForBudgetBytes:
      return CheckInverseGoal("max_seq_len_for_budget_bytes",
                              in.max_seq_len_for_budget_bytes());
    case Request::kMaxBatchForBudgetBytes:
      return CheckInverseGoal("max_batch_for_budget_bytes",
                              in.max_batch_for_budget_bytes());
    case Request::kMaxConcurrencyForBudgetBytes:
      return CheckInverseGoal("max_concurrency_for_budget_bytes",
                              in.max_concurrency_for_budget_bytes());
    case Request::kEstimate:
    case Request::GOAL_NOT_SET:
      return absl::OkStatus();
  }
  return absl::InternalError("a goal that the switch lacks");
}

absl::Status CheckLengths(const Extents& extents) {
  for (const Number& length : {extents.q_len, extents.kv_len}) {
    if (length.value == 0) {
      return FieldError(std::string(length.field),
                        "a number > 0, since q_len or kv_len is 0", "0");
    }
  }
  return absl::OkStatus();
}

// The core speaks of tensors and axes; this request has numbers instead.
absl::Status Renamed(const absl::Status& status, const Extents& extents) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  const std::pair<absl::string_view, const Number*> names[] = {
      {"query.shape[0]", &extents.batch},
      {"query.shape[1]", &extents.q_heads},
      {"query.shape[2]", &extents.q_len},
      {"query.shape[3]", &extents.head_dim},
      {"query.shape", &extents.q_len},
      {"key.shape[1]", &extents.kv_heads},
      {"key.shape[2]", &extents.kv_len},
      {"key.shape", &extents.kv_len},
      {"value.shape[3]", &extents.v_head_dim},
      {"value.shape", &extents.kv_len}};
  for (const auto& [core_name, number] : names) {
    if (*field == core_name) {
      return WithField(status, std::string(number->field));
    }
  }
  return status;
}

absl::StatusOr<AttentionProblem> ProblemOf(const Request& in) {
  const absl::Status checks[] = {CheckNumbers(in), CheckProblemType(in.dtype()),
                                 CheckTransport(in), CheckGoal(in)};
  for (const absl::Status& check : checks) {
    if (!check.ok() && !absl::IsUnimplemented(check)) return check;
  }
  const absl::StatusOr<AttentionOptions> options =
      DecodeOptions(in.options(), "options");
  if (!options.ok()) return options.status();
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  const Extents of = ExtentsOf(in);
  if (absl::Status status = CheckLengths(of); !status.ok()) return status;
  absl::StatusOr<AttentionProblem> problem = AttentionProblem::Create(
      {.shape = {of.batch.value, of.q_heads.value, of.q_len.value,
                 of.head_dim.value}},
      {.shape = {of.batch.value, of.kv_heads.value, of.kv_len.value,
                 of.head_dim.value}},
      {.shape = {of.batch.value, of.kv_heads.value, of.kv_len.value,
                 of.v_head_dim.value}},
      *options);
  if (!problem.ok()) return Renamed(problem.status(), of);
  return problem;
}

// What a request's problem costs.
struct Cost {
  MemoryEstimate estimate;
  RequestFootprint footprint;
  int64_t peak_bytes = 0;  // at the concurrency that was asked for
};

absl::StatusOr<Cost> CostOf(const Request& request,
                            const ServiceContext& context) {
  const absl::StatusOr<AttentionProblem> problem = ProblemOf(request);
  if (!problem.ok()) return problem.status();
  const int64_t threads =
      request.threads() > 0 ? request.threads() : context.engine.threads();
  const absl::StatusOr<MemoryEstimate> estimate =
      MemoryEstimator(context.engine.machine(), threads).Estimate(*problem);
  if (!estimate.ok()) return estimate.status();
  const absl::StatusOr<RequestFootprint> footprint = InlineFootprint(*estimate);
  if (!footprint.ok()) return footprint.status();
  const int64_t concurrency =
      request.concurrency() > 0 ? request.concurrency() : 1;
  const std::optional<int64_t> peak_bytes =
      CheckedProduct({footprint->peak_per_request_bytes, concurrency});
  if (!peak_bytes) {
    return WithReason(
        FieldError("concurrency", "peak_bytes that fit a signed 64-bit number",
                   absl::StrCat(concurrency)),
        kInt64RangeReason);
  }
  return Cost{*estimate, *footprint, *peak_bytes};
}

// The limit that is exceeded, the one that is exceeded by the larger factor
// where both are; empty where the problem fits.
absl::string_view ExceededLimit(const Cost& cost,
                                const ServiceContext& context) {
  const double memory_share =
      static_cast<double>(cost.peak_bytes) /
      static_cast<double>(context.admission.budget_bytes());
  const double message_share =
      static_cast<double>(cost.footprint.required_message_bytes) /
      static_cast<double>(context.max_message_bytes);
  if (std::max(memory_share, message_share) <= 1) return "";
  return memory_share > message_share ? "memory_budget" : "message_size";
}

// What stops a larger problem: which limit the shortest sequences exceed that
// do not fit, of this problem's proportions and at least its lengths. The
// limits' shares of this problem would not tell, for some of what is held does
// not grow with the sequences.
absl::string_view LimitingFactor(const Request& request,
                                 const ServiceContext& context) {
  const Extents extents = ExtentsOf(request);
  const int64_t q_len = extents.q_len.value;
  const int64_t kv_len = extents.kv_len.value;
  const int64_t longest = std::max(q_len, kv_len);
  Request grown = request;
  const auto limit_at = [&](int64_t length) -> absl::string_view {
    const double factor =
        static_cast<double>(length) / static_cast<double>(longest);
    const auto scaled = [factor](int64_t size) {
      return std::llround(static_cast<double>(size) * factor);
    };
    grown.set_q_len(scaled(q_len));
    grown.set_kv_len(scaled(kv_len));
    const absl::StatusOr<Cost> cost = CostOf(grown, context);
    return cost.ok() ? ExceededLimit(*cost, context) : "int64_range";
  };
  // Ends: a problem is bounded by AttentionProblem::kMaxWork.
  int64_t too_long = longest;
  while (limit_at(too_long).empty()) too_long *= 2;
  int64_t fits = too_long == longest ? longest - 1 : too_long / 2;
  while (too_long - fits > 1) {
    const int64_t middle = fits + (too_long - fits) / 2;
    (limit_at(middle).empty() ? fits : too_long) = middle;
  }
  return limit_at(too_long);
}

}  // namespace

absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const Request& request, const ServiceContext& context) {
  const absl::StatusOr<Cost> cost = CostOf(request, context);
  if (!cost.ok()) return cost.status();
  const auto& [estimate, footprint, peak_bytes] = *cost;
  v1::MemoryEstimateResponse response;
  response.set_naive_bytes(estimate.naive_bytes);
  response.set_flash_bytes(estimate.flash_bytes);
  response.set_reduction_ratio(estimate.ReductionRatio());
  response.set_input_bytes(estimate.input_bytes);
  response.set_output_bytes(estimate.output_bytes);
  response.set_workspace_bytes(estimate.workspace_bytes);
  response.set_wire_bytes(footprint.wire_bytes);
  response.set_peak_per_request_bytes(footprint.peak_per_request_bytes);
  response.set_peak_bytes(peak_bytes);
  response.set_required_message_bytes(footprint.required_message_bytes);
  response.set_flops(estimate.flops);
  response.set_fits(ExceededLimit(*cost, context).empty());
  response.set_limiting_factor(std::string(LimitingFactor(request, context)));
  return response;
}

}  // namespace attnd::server
