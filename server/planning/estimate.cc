#include "server/planning/estimate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/attention_problem.h"
#include "core/checked_math.h"
#include "core/field_error.h"
#include "core/memory_estimator.h"
#include "core/options_footprint.h"
#include "server/codec/options_codec.h"
#include "server/status/status_convert.h"

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
    case v1::TRANSPORT_STREAM:
    case v1::TRANSPORT_SHARED_MEMORY:
      return absl::OkStatus();
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

// The options' tensors are described, not sent.
absl::Status CheckNoPayload(const v1::AttentionOptions& options) {
  const std::pair<const v1::Tensor*, const char*> tensors[] = {
      {&options.bias(), "options.bias"}, {&options.mask(), "options.mask"}};
  for (const auto& [tensor, path] : tensors) {
    const auto refuse = [path = path](const char* payload) {
      return FieldError(absl::StrCat(path, ".", payload),
                        "type and shape alone", "a payload");
    };
    switch (tensor->payload_case()) {
      case v1::Tensor::kData:
        return refuse("data");
      case v1::Tensor::kValues:
        return refuse("values");
      case v1::Tensor::kSharedMemory:
        return refuse("shared_memory");
      case v1::Tensor::PAYLOAD_NOT_SET:
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRegions(const v1::AttentionOptions& options) {
  const std::pair<bool, const char*> regions[] = {
      {options.has_output_region(), "options.output_region"},
      {options.has_lse_region(), "options.lse_region"}};
  for (const auto& [there, field] : regions) {
    if (!there) continue;
    return FieldError(field, "no region, as MemoryEstimate takes no data",
                      "a region");
  }
  return absl::OkStatus();
}

// A tensor's axes in the order of the options' layout; a ragged batch, which
// is packed along seq, has none for batch.
struct Axes {
  absl::string_view name;
  std::vector<Number> numbers;

  TensorSpec Spec(DataType dtype) const {
    TensorSpec spec{.dtype = dtype, .shape = {}};
    for (const Number& number : numbers) spec.shape.push_back(number.value);
    return spec;
  }
};

Axes AxesOf(absl::string_view name, const Number& batch, const Number& heads,
            const Number& seq, const Number& dim,
            const AttentionOptions& options) {
  Axes axes{name, {batch, heads, seq, dim}};
  auto& numbers = axes.numbers;
  if (options.layout == Layout::kBshd) std::swap(numbers[1], numbers[2]);
  if (!options.cu_seqlens_q.empty()) numbers.erase(numbers.begin());
  return axes;
}

// The core speaks of tensors and axes; this request has numbers instead.
absl::Status Renamed(const absl::Status& status,
                     std::initializer_list<Axes> tensors,
                     const Number& longest) {
  const std::optional<std::string> field = FieldOf(status);
  if (!field) return status;
  for (const Axes& axes : tensors) {
    const std::string shape = absl::StrCat(axes.name, ".shape");
    if (*field == shape) return WithField(status, std::string(longest.field));
    for (size_t i = 0; i < axes.numbers.size(); ++i) {
      if (*field == absl::StrCat(shape, "[", i, "]")) {
        return WithField(status, std::string(axes.numbers[i].field));
      }
    }
  }
  return status;
}

// A request that was found good but for its shapes, decoded once for all the
// problems of its proportions.
struct Asked {
  Extents of;
  DataType dtype = DataType::kF32;
  AttentionOptions options;
  v1::Transport transport = v1::TRANSPORT_UNSPECIFIED;
  int64_t threads = 0;
  int64_t concurrency = 1;
};

absl::StatusOr<Asked> Decode(const Request& in, const ServiceContext& context) {
  const absl::StatusOr<DataType> dtype = DecodeProblemType(in.dtype());
  const absl::Status checks[] = {CheckNumbers(in),
                                 dtype.status(),
                                 CheckTransport(in),
                                 CheckGoal(in),
                                 CheckNoPayload(in.options()),
                                 CheckRegions(in.options())};
  for (const absl::Status& check : checks) {
    if (!check.ok() && !absl::IsUnimplemented(check)) return check;
  }
  absl::StatusOr<AttentionOptions> options = DecodeOptions(in.options());
  if (!options.ok()) return options.status();
  for (const absl::Status& check : checks) {
    if (!check.ok()) return check;
  }
  const Extents of = ExtentsOf(in);
  if (absl::Status status = CheckLengths(of); !status.ok()) return status;
  if (!options->cu_seqlens_q.empty() && of.batch.value != 1) {
    return FieldError("batch", "1 beside options.cu_seqlens_q, which says more",
                      absl::StrCat(of.batch.value));
  }
  return Asked{
      .of = of,
      .dtype = *dtype,
      .options = *std::move(options),
      .transport = in.transport(),
      .threads = in.threads() > 0 ? in.threads() : context.engine.threads(),
      .concurrency = in.concurrency() > 0 ? in.concurrency() : 1};
}

absl::StatusOr<AttentionProblem> ProblemOf(const Asked& asked) {
  const Extents& of = asked.of;
  const AttentionOptions& options = asked.options;
  const Axes query =
      AxesOf("query", of.batch, of.q_heads, of.q_len, of.head_dim, options);
  const Axes key =
      AxesOf("key", of.batch, of.kv_heads, of.kv_len, of.head_dim, options);
  const Axes value =
      AxesOf("value", of.batch, of.kv_heads, of.kv_len, of.v_head_dim, options);
  absl::StatusOr<AttentionProblem> problem =
      AttentionProblem::Create(query.Spec(asked.dtype), key.Spec(asked.dtype),
                               value.Spec(asked.dtype), options);
  if (problem.ok()) return problem;
  // Where a whole shape is at fault, it is too large.
  const absl::Status status = Renamed(problem.status(), {query}, of.q_len);
  return Renamed(status, {key, value}, of.kv_len);
}

// What a request's problem costs.
struct Cost {
  MemoryEstimate estimate;
  RequestFootprint footprint;
  int64_t concurrency = 1;
  int64_t peak_bytes = 0;  // at this concurrency
};

absl::StatusOr<RequestFootprint> FootprintBy(v1::Transport transport,
                                             const MemoryEstimate& estimate,
                                             const AttentionProblem& problem) {
  switch (transport) {
    case v1::TRANSPORT_STREAM:
      return StreamFootprint(estimate);
    case v1::TRANSPORT_SHARED_MEMORY:
      return SharedMemoryFootprint(estimate, problem.mask_bytes());
    default:
      return InlineFootprint(estimate);
  }
}

absl::StatusOr<Cost> CostOf(const Asked& asked, const ServiceContext& context) {
  const absl::StatusOr<AttentionProblem> problem = ProblemOf(asked);
  if (!problem.ok()) return problem.status();
  const absl::StatusOr<MemoryEstimate> estimate =
      MemoryEstimator(context.engine.machine(), asked.threads)
          .Estimate(*problem);
  if (!estimate.ok()) return estimate.status();
  absl::StatusOr<RequestFootprint> footprint =
      FootprintBy(asked.transport, *estimate, *problem);
  if (!footprint.ok()) return footprint.status();
  const OptionsFootprint listed = FootprintOf(problem->options());
  const std::optional<int64_t> wire =
      CheckedSum({footprint->wire_bytes, listed.wire_bytes});
  const std::optional<int64_t> message =
      CheckedSum({footprint->required_message_bytes, listed.wire_bytes});
  const std::optional<int64_t> peak =
      CheckedSum({footprint->peak_per_request_bytes, listed.held_bytes});
  if (!wire || !message || !peak) return BytesOutOfRange();
  // A stream's lists travel in the header, and its chunks are no larger than
  // messages may be.
  footprint->required_message_bytes =
      asked.transport == v1::TRANSPORT_STREAM
          ? std::max(std::min(footprint->required_message_bytes,
                              context.max_message_bytes),
                     kMessageEnvelopeBytes + listed.wire_bytes)
          : *message;
  footprint->wire_bytes = *wire;
  footprint->peak_per_request_bytes = *peak;
  const std::optional<int64_t> peak_bytes =
      CheckedProduct({footprint->peak_per_request_bytes, asked.concurrency});
  if (!peak_bytes) {
    return WithReason(
        FieldError("concurrency", "peak_bytes that fit a signed 64-bit number",
                   absl::StrCat(asked.concurrency)),
        kInt64RangeReason);
  }
  return Cost{*estimate, *footprint, asked.concurrency, *peak_bytes};
}

// The limits that are exceeded: how many, and the one by the largest factor.
struct Excess {
  int64_t limits = 0;
  absl::string_view largest;
};

Excess ExcessOf(const Cost& cost, const ServiceContext& context) {
  const auto share = [](int64_t wanted, int64_t limit) {
    return static_cast<double>(wanted) / static_cast<double>(limit);
  };
  const std::pair<double, absl::string_view> shares[] = {
      {share(cost.footprint.required_message_bytes, context.max_message_bytes),
       "message_size"},
      {share(cost.peak_bytes, context.admission.budget_bytes()),
       "memory_budget"},
      {share(cost.concurrency, context.admission.max_in_flight()),
       "max_in_flight"}};
  Excess excess;
  double most = 1;
  for (const auto& [factor, limit] : shares) {
    if (factor <= 1) continue;
    ++excess.limits;
    if (factor <= most) continue;
    most = factor;
    excess.largest = limit;
  }
  return excess;
}

// What was asked with sequences `factor` times as long, and with them whatever
// the options say of them.
Asked Grown(const Asked& asked, double factor) {
  const auto scaled = [factor](int64_t size) {
    return static_cast<int64_t>(
        std::llround(static_cast<double>(size) * factor));
  };
  Asked grown = asked;
  const int64_t q_len = grown.of.q_len.value = scaled(asked.of.q_len.value);
  const int64_t kv_len = grown.of.kv_len.value = scaled(asked.of.kv_len.value);
  AttentionOptions& options = grown.options;
  for (auto* lengths : {&options.query_lengths, &options.key_lengths,
                        &options.cu_seqlens_q, &options.cu_seqlens_k}) {
    std::transform(lengths->begin(), lengths->end(), lengths->begin(), scaled);
  }
  const auto grow_shape = [&](std::vector<int64_t>& shape) {
    const size_t rank = shape.size();
    if (rank >= 1 && shape[rank - 1] != 1) shape[rank - 1] = kv_len;
    if (rank >= 2 && shape[rank - 2] != 1) shape[rank - 2] = q_len;
  };
  if (options.bias) grow_shape(options.bias->shape);
  if (options.mask_shape) grow_shape(*options.mask_shape);
  return grown;
}

int64_t ListedNumbers(const AttentionOptions& options) {
  return static_cast<int64_t>(
      options.query_offsets.size() + options.alibi_slopes.size() +
      options.sink_logits.size() + options.query_lengths.size() +
      options.key_lengths.size() + options.cu_seqlens_q.size() +
      options.cu_seqlens_k.size());
}

// Between the two, nearer in their ratio than in their difference while they
// are far apart.
int64_t Between(int64_t low, int64_t high) {
  const auto ratio = static_cast<uint64_t>(high / low);
  return ratio > 4 ? low << (std::bit_width(ratio) / 2)
                   : low + (high - low) / 2;
}

// What stops a larger problem: which limit the shortest sequences exceed that
// do not fit, of this problem's proportions and at least its lengths. The
// limits' shares of this problem would not tell, for some of what is held does
// not grow with the sequences. `excess` is this problem's.
//
// Whatever grows has one limit that it exceeds first, so where one alone is
// exceeded, it is the one; most searches end there, long before the length is
// found. Costing long lists takes milliseconds in a thread that others wait
// for, so those searches are cut off, and name the limit that is exceeded most.
absl::string_view LimitingFactor(const Asked& asked, Excess excess,
                                 const ServiceContext& context) {
  constexpr int64_t kCostedNumbers = 1 << 20;
  constexpr int64_t kFewestCosts = 6;   // the first of them find a length
  constexpr int64_t kFirstFactor = 16;  // then 256, 65536, ...
  constexpr int64_t kLargestFactor = int64_t{1} << 32;
  // A problem of this length is none: AttentionProblem::kMaxWork bounds it.
  constexpr int64_t kTooLong = int64_t{1} << 62;
  int64_t costs_left = std::max(
      kFewestCosts, kCostedNumbers / (1 + ListedNumbers(asked.options)));
  const int64_t length = std::max(asked.of.q_len.value, asked.of.kv_len.value);
  const auto excess_at = [&](int64_t grown) -> Excess {
    --costs_left;
    const double factor =
        static_cast<double>(grown) / static_cast<double>(length);
    const absl::StatusOr<Cost> cost = CostOf(Grown(asked, factor), context);
    // Others may be exceeded before.
    return cost.ok() ? ExcessOf(*cost, context) : Excess{2, "int64_range"};
  };
  int64_t fits = length - 1;
  int64_t too_long = length;
  for (int64_t factor = kFirstFactor; excess.limits == 0;) {
    fits = too_long;
    too_long = too_long < kTooLong / factor ? too_long * factor : kTooLong;
    excess = excess_at(too_long);
    if (factor < kLargestFactor) factor *= factor;
  }
  while (excess.limits > 1 && too_long - fits > 1 && costs_left > 0) {
    const int64_t middle = Between(fits, too_long);
    const Excess between = excess_at(middle);
    if (between.limits == 0) {
      fits = middle;
    } else {
      too_long = middle;
      excess = between;
    }
  }
  return excess.largest;
}

}  // namespace

absl::StatusOr<v1::MemoryEstimateResponse> EstimateMemory(
    const Request& request, const ServiceContext& context) {
  const absl::StatusOr<Asked> asked = Decode(request, context);
  if (!asked.ok()) return asked.status();
  const absl::StatusOr<Cost> cost = CostOf(*asked, context);
  if (!cost.ok()) return cost.status();
  const auto& [estimate, footprint, concurrency, peak_bytes] = *cost;
  const Excess excess = ExcessOf(*cost, context);
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
  response.set_fits(excess.limits == 0);
  response.set_limiting_factor(
      std::string(LimitingFactor(*asked, excess, context)));
  return response;
}

}  // namespace attnd::server
