#include "server/planning/estimate.h"

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "base/status_macros.h"
#include "cost/cost_query.h"
#include "cost/largest_fit.h"
#include "google/protobuf/message.h"
#include "server/codec/options_codec.h"

namespace attnd::server {
namespace {

using google::protobuf::FieldDescriptor;
using Request = v1::MemoryEstimateRequest;

absl::StatusOr<Transport> DecodeTransport(v1::Transport transport) {
  if (transport == v1::TRANSPORT_UNSPECIFIED) return Transport::kInline;
  const auto decoded = static_cast<Transport>(transport);
  for (const auto& known : kNamedValues<Transport>) {
    if (known.value == decoded) return decoded;
  }
  return FieldError("transport", "INLINE, STREAM or SHARED_MEMORY",
                    absl::StrCat(static_cast<int>(transport)));
}

// Returns the field of the oneof `name` that is set in `message`, or null.
const FieldDescriptor* MemberOf(const google::protobuf::Message& message,
                                const char* name) {
  return message.GetReflection()->GetOneofFieldDescriptor(
      message, message.GetDescriptor()->FindOneofByName(name));
}

// The goal of a request, and the limits with its budget.
struct Goal {
  EstimateGoal goal = EstimateGoal::kEstimate;
  CostLimits limits;
};

absl::StatusOr<Goal> DecodeGoal(const Request& in, const CostLimits& limits) {
  Goal result{.limits = limits};
  const FieldDescriptor* const goal = MemberOf(in, "goal");
  if (goal == nullptr) return result;
  result.goal = static_cast<EstimateGoal>(goal->number());
  if (result.goal == EstimateGoal::kEstimate) return result;
  const int64_t budget_bytes = in.GetReflection()->GetInt64(in, goal);
  if (budget_bytes < 0) {
    return FieldError(goal->name(), "a number >= 0",
                      absl::StrCat(budget_bytes));
  }
  if (budget_bytes != 0) result.limits.budget_bytes = budget_bytes;
  return result;
}

// Checks that the tensors in the options have a type and a shape, but no
// elements, and that no region is given for the output.
absl::Status CheckNoData(const v1::AttentionOptions& options) {
  const std::pair<const v1::Tensor*, const char*> tensors[] = {
      {&options.bias(), "options.bias."}, {&options.mask(), "options.mask."}};
  for (const auto& [tensor, path] : tensors) {
    const FieldDescriptor* const payload = MemberOf(*tensor, "payload");
    if (payload == nullptr) continue;
    return FieldError(absl::StrCat(path, payload->name()),
                      "a type and a shape without elements", "a payload");
  }
  if (!options.has_output_region() && !options.has_lse_region()) {
    return absl::OkStatus();
  }
  return FieldError(options.has_output_region() ? "options.output_region"
                                                : "options.lse_region",
                    "no region, because MemoryEstimate takes no data",
                    "a region");
}

// Checks and converts the request. Does not set defaults.
absl::StatusOr<CostQuery> Decode(const Request& in,
                                 const AttentionEngine& engine,
                                 const CostLimits& limits) {
  CostQuery query{.machine = engine.machine(),
                  .max_message_bytes = limits.max_message_bytes};
  query.seq_len.value = in.seq_len();
  query.dimensions.value = in.dimensions();
  query.batch.value = in.batch();
  query.num_q_heads.value = in.num_q_heads();
  query.num_kv_heads.value = in.num_kv_heads();
  query.q_len.value = in.q_len();
  query.kv_len.value = in.kv_len();
  query.head_dim.value = in.head_dim();
  query.v_head_dim.value = in.v_head_dim();
  query.threads.value = in.threads() != 0 ? in.threads() : engine.threads();
  query.concurrency.value = in.concurrency();
  ATTND_RETURN_IF_ERROR(query.CheckSizes());
  ATTND_ASSIGN_OR_RETURN(query.dtype, DecodeProblemType(in.dtype()));
  ATTND_ASSIGN_OR_RETURN(query.transport, DecodeTransport(in.transport()));
  ATTND_RETURN_IF_ERROR(CheckNoData(in.options()));
  absl::StatusOr<DecodedOptions> decoded = DecodeOptions(in.options());
  if (!decoded.ok()) return decoded.status();
  query.options = std::move(decoded->options);
  query.outputs = decoded->outputs;
  return query;
}

v1::MemoryEstimateResponse Response(const QueryCost& cost, bool fits,
                                    std::string_view limiting_factor) {
  const MemoryEstimate& computation = cost.computation;
  v1::MemoryEstimateResponse response;
  response.set_naive_bytes(computation.naive_bytes);
  response.set_flash_bytes(computation.flash_bytes);
  response.set_reduction_ratio(computation.ReductionRatio());
  response.set_input_bytes(computation.input_bytes);
  response.set_output_bytes(computation.output_bytes);
  response.set_workspace_bytes(computation.workspace_bytes);
  response.set_wire_bytes(cost.call.wire_bytes);
  response.set_peak_per_request_bytes(cost.call.peak_bytes);
  response.set_peak_bytes(cost.peak_bytes);
  response.set_required_message_bytes(cost.call.required_message_bytes);
  response.set_flops(computation.flops);
  response.set_fits(fits);
  response.set_limiting_factor(std::string(limiting_factor));
  return response;
}

}  // namespace

absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const Request& request, const AttentionEngine& engine,
    const CostLimits& limits) {
  ATTND_ASSIGN_OR_RETURN(CostQuery query, Decode(request, engine, limits));
  ATTND_ASSIGN_OR_RETURN(const Goal goal, DecodeGoal(request, limits));
  if (goal.goal == EstimateGoal::kEstimate) {
    ATTND_RETURN_IF_ERROR(query.SetDefaults());
    ATTND_ASSIGN_OR_RETURN(const QueryCost cost, CostOf(query));
    const LimitCheck check = CheckLimits(query, cost, goal.limits);
    return Response(cost, check.fits, check.limiting_factor);
  }
  ATTND_ASSIGN_OR_RETURN(const LargestFit largest,
                         FindLargestFit(query, goal.goal, goal.limits));
  v1::MemoryEstimateResponse response =
      Response(largest.cost, largest.size > 0, largest.limiting_factor);
  switch (goal.goal) {
    case EstimateGoal::kMaxSeqLen:
      response.set_max_seq_len(largest.size);
      break;
    case EstimateGoal::kMaxBatch:
      response.set_max_batch(largest.size);
      break;
    case EstimateGoal::kMaxConcurrency:
      response.set_max_concurrency(largest.size);
      break;
    case EstimateGoal::kEstimate:
      break;
  }
  return response;
}

absl::StatusOr<ContainerMemory> EstimateContainer(const Request& request,
                                                  const AttentionEngine& engine,
                                                  const CostLimits& limits) {
  const FieldDescriptor* const goal = MemberOf(request, "goal");
  if (goal != nullptr &&
      goal->number() != static_cast<int>(EstimateGoal::kEstimate)) {
    return FieldError(goal->name(),
                      "no goal other than estimate, because a container is "
                      "planned for calls of a known size",
                      "this goal");
  }
  ATTND_ASSIGN_OR_RETURN(CostQuery query, Decode(request, engine, limits));
  ATTND_RETURN_IF_ERROR(query.SetDefaults());
  ATTND_ASSIGN_OR_RETURN(const QueryCost cost, CostOf(query));
  if (const absl::Status range = CheckInt64Range(query, cost); !range.ok()) {
    return absl::OutOfRangeError(range.message());
  }
  return SolveContainerMemory(cost.call, query.transport, cost.concurrency);
}

}  // namespace attnd::server
