// Compares how the server reads the bytes of requests with protobuf's own
// parser. The first byte of an input picks the type, the second one says how
// the rest is cut into slices, and the rest is the message.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attnd/v1/attention.pb.h"
#include "base/field_error.h"
#include "server/codec/message_parser.h"
#include "server/codec/request_codec.h"
#include "server/memory/admission.h"
#include "server/planning/estimate.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/heap_peak.h"
#include "tests/server/message_tools.h"
#include "wire/message_splitter.h"
#include "wire/reasons.h"
#include "wire/received_message.h"

namespace attnd::server {
namespace {

using fuzz::Require;

// Checks that an error blames the request and names a field.
void CheckRefusal(const absl::Status& status) {
  Require(FieldOf(status).has_value(), "a refusal names its field");
  Require(absl::IsInvalidArgument(status), "a refusal is INVALID_ARGUMENT");
}

// Checks that decoding `got`, whose payloads are tokens, gives the elements of
// `expected`.
void CheckDecoding(const AttentionTensors& got,
                   const AttentionTensors& expected, const SplitMessage& split,
                   const ReceivedMessage& received) {
  const absl::StatusOr<DecodedRequest> decoded = DecodeRequest(got, split);
  if (!decoded.ok()) return CheckRefusal(decoded.status());
  for (size_t role = 0; role < kTensorRoles; ++role) {
    const v1::Tensor* const tensor = expected.by_role[role].tensor;
    if (tensor == nullptr || ComesInChunks(*tensor)) continue;
    if (tensor->payload_case() == v1::Tensor::kSharedMemory) continue;
    const auto size = static_cast<size_t>(decoded->bytes[role]);
    std::string elements(size, '\0');
    auto* const to = reinterpret_cast<std::byte*>(elements.data());
    const bool values = tensor->payload_case() == v1::Tensor::kValues;
    if (values) {
      CopyValues(*got.by_role[role].tensor, to);
    } else {
      received.CopyTo(PayloadOf(split, got.by_role[role].tensor->data()), to);
    }
    const auto& numbers = tensor->values().values();
    const absl::string_view sent =
        values ? absl::string_view(
                     reinterpret_cast<const char*>(numbers.data()),
                     static_cast<size_t>(numbers.size()) * sizeof(float))
               : absl::string_view(tensor->data());
    Require(sent == elements, "elements are what was sent");
  }
}

template <typename Request>
void CheckMeaning(const Request& got, const Request& expected,
                  const SplitMessage& split, const ReceivedMessage& received) {
  CheckDecoding(AttentionTensors::Of(got), AttentionTensors::Of(expected),
                split, received);
}

void CheckMeaning(const v1::AttentionStreamRequest& got,
                  const v1::AttentionStreamRequest& expected,
                  const SplitMessage& split, const ReceivedMessage& received) {
  if (!got.has_header()) return;
  CheckDecoding(AttentionTensors::OfStream(got.header()),
                AttentionTensors::OfStream(expected.header()), split, received);
}

void CheckMeaning(const v1::MemoryEstimateRequest& got,
                  const v1::MemoryEstimateRequest&, const SplitMessage&,
                  const ReceivedMessage&) {
  static AttentionEngine engine({.threads = 1});
  const CostLimits limits{.max_message_bytes = int64_t{16} << 20,
                          .budget_bytes = int64_t{100} << 20,
                          .max_in_flight = 8};
  const auto response = EstimateMemory(got, engine, limits);
  if (!response.ok()) return CheckRefusal(response.status());
  constexpr int64_t kSaturated = std::numeric_limits<int64_t>::max();
  for (const int64_t figure :
       {response->naive_bytes(), response->flash_bytes(), response->flops(),
        response->peak_bytes(), response->required_message_bytes()}) {
    Require(figure >= 0, "no figure overflows");
    Require(figure < kSaturated || !response->fits(),
            "what does not fit an int64 does not fit the server");
  }
  Require(!response->limiting_factor().empty(), "there always is a limit");
}

// The benchmark itself checks these fields.
void CheckMeaning(const v1::BenchmarkRequest&, const v1::BenchmarkRequest&,
                  const SplitMessage&, const ReceivedMessage&) {}

template <typename Request>
void Check(const std::string& bytes, uint8_t cut) {
  static Admission admission(std::numeric_limits<int64_t>::max(), 1);
  Request expected;
  const bool accepted = expected.ParseFromString(bytes);
  const ReceivedMessage received = InSlices(bytes, size_t{4} << cut % 8, cut);
  Admission::Reservation reservation = *admission.Admit(received.size_bytes());
  Request got;
  // The descriptor is made at its first use, and no reservation counts it.
  (void)Request::descriptor();
  const fuzz::HeapPeak peak;
  const absl::StatusOr<SplitMessage> split =
      ParseMessage(received, reservation, got);
  const int64_t peak_bytes = peak.bytes();
  if (ReasonOf(split.status()) == kTooManyFields) {
    Require(bytes.size() > 2 * kMaxFields,
            "so few bytes hold no more fields than are allowed");
    return;
  }
  Require(split.ok() == accepted, "both parsers accept the same");
  if (!accepted) return;
  Require(peak_bytes >= static_cast<int64_t>(got.SpaceUsedLong() - sizeof(got)),
          "the peak is counted");
  Require(peak_bytes <= reservation.bytes() - received.size_bytes(),
          "a message takes no more than was reserved for it");
  CheckMeaning(got, expected, *split, received);
  RestorePayloads(got, *split, received);
  expected.DiscardUnknownFields();
  // The bytes are compared, because a NaN does not equal itself.
  Require(got.SerializeAsString() == expected.SerializeAsString(),
          "both parsers make the same message");
}

constexpr void (*kChecks[])(const std::string&, uint8_t) = {
    Check<v1::AttentionRequest>,      Check<v1::SelfAttentionRequest>,
    Check<v1::CrossAttentionRequest>, Check<v1::AttentionBackwardRequest>,
    Check<v1::MemoryEstimateRequest>, Check<v1::BenchmarkRequest>,
    Check<v1::AttentionStreamRequest>};

// Returns a valid request that is small, so that an edit is likely to hit a
// byte that matters.
v1::AttentionRequest Small(bool values) {
  const auto make = values ? ValuesTensor : DataTensor;
  v1::AttentionRequest request;
  *request.mutable_query() = make({2, 1, 2, 3}, 1);
  *request.mutable_key() = make({2, 1, 3, 3}, 2);
  *request.mutable_value() = make({2, 1, 3, 1}, 3);
  return request;
}

v1::AttentionRequest WithOptions() {
  v1::AttentionRequest request = Small(false);
  v1::AttentionOptions& options = *request.mutable_options();
  options.set_scale(0.5F);
  options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
  options.set_window_left(1);
  options.set_return_lse(true);
  options.add_query_lengths(2);
  options.add_query_lengths(1);
  options.add_key_lengths(3);
  options.add_key_lengths(0);
  options.add_alibi_slopes(0.25F);
  *options.mutable_bias() = DataTensor({2, 3}, 4);
  *options.mutable_mask() = MaskTensor({2, 3}, 5);
  return request;
}

v1::AttentionRequest RaggedHalves() {
  v1::AttentionRequest request;
  *request.mutable_query() = HalfTensor(v1::DATA_TYPE_F16, {1, 2, 3}, 1);
  *request.mutable_key() = HalfTensor(v1::DATA_TYPE_BF16, {1, 3, 3}, 2);
  *request.mutable_value() = HalfTensor(v1::DATA_TYPE_BF16, {1, 3, 1}, 3);
  for (const int64_t offset : {0, 1, 2}) {
    request.mutable_options()->add_cu_seqlens_q(offset);
    request.mutable_options()->add_cu_seqlens_k(offset + offset / 2);
  }
  return request;
}

// Returns lists that grow many times when they are parsed, the last time for
// their last elements.
v1::AttentionRequest LongLists() {
  v1::AttentionRequest request;
  request.mutable_options()->mutable_key_lengths()->Resize(1030, 1);
  request.mutable_options()->mutable_sink_logits()->Resize(300, 1);
  request.mutable_query()->mutable_shape()->Resize(100, 1);
  return request;
}

// Returns the largest allowed number of fields. They all merge.
std::string ManyFields() {
  std::string bytes;
  for (int64_t i = 0; i < kMaxFields / 2; ++i) bytes += "\x0a\x02\x10\x01";
  for (int64_t i = 0; i < kMaxFields / 2; ++i) bytes += "\x78\x01";
  return bytes;
}

// `type` is the index of the message's type in kChecks.
std::string Input(char type, char cut,
                  const google::protobuf::Message& message) {
  return std::string{type, cut} + message.SerializeAsString();
}

std::vector<std::string> GoodInputs() {
  v1::SelfAttentionRequest self;
  *self.mutable_sequence() = DataTensor({1, 2, 3}, 1);
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = ValuesTensor({2, 3}, 1);
  *cross.mutable_kv_sequence() = ValuesTensor({1, 3}, 2);
  v1::AttentionBackwardRequest backward;
  *backward.mutable_query() = DataTensor({2, 3}, 1);
  *backward.mutable_key() = DataTensor({1, 3}, 2);
  *backward.mutable_value() = DataTensor({1, 2}, 3);
  *backward.mutable_output() = DataTensor({2, 2}, 4);
  *backward.mutable_lse() = DataTensor({2}, 5);
  *backward.mutable_grad_output() = DataTensor({2, 2}, 6);
  v1::MemoryEstimateRequest estimate;
  estimate.set_seq_len(4096);
  estimate.set_dimensions(64);
  estimate.set_max_batch_for_budget_bytes(1 << 30);
  v1::MemoryEstimateRequest longest;
  longest.set_q_len(1);
  longest.set_max_seq_len_for_budget_bytes(0);
  longest.mutable_options()->add_key_lengths(100);
  v1::MemoryEstimateRequest absurd;
  absurd.set_seq_len(int64_t{1} << 62);
  absurd.set_concurrency(int64_t{1} << 60);
  v1::BenchmarkRequest benchmark;
  benchmark.set_num_vectors(64);
  v1::AttentionStreamRequest header;
  *header.mutable_header() = Small(false);
  header.mutable_header()->mutable_query()->clear_data();
  v1::AttentionStreamRequest chunk;
  chunk.mutable_chunk()->set_role(v1::TENSOR_ROLE_QUERY);
  chunk.mutable_chunk()->set_data("data");
  return {Input(0, 0, Small(false)),
          Input(0, 1, Small(true)),
          Input(0, 2, WithOptions()),
          Input(0, 3, RaggedHalves()),
          Input(0, 4, LongLists()),
          Input(1, 4, self),
          Input(2, 5, cross),
          Input(3, 6, backward),
          Input(4, 7, estimate),
          Input(4, 7, longest),
          Input(4, 7, absurd),
          Input(5, 8, benchmark),
          Input(6, 9, header),
          Input(6, 10, chunk),
          std::string{0, 11} + ManyFields(),
          std::string{0, 12} + ManyFields() + "\x78\x01"};
}

template <typename Request>
void AddRandom(char type, std::vector<std::string>& inputs) {
  for (char seed = 0; seed < 4; ++seed) {
    std::mt19937_64 rng(static_cast<uint64_t>(seed));
    Request request;
    FillAtRandom(request, rng);
    inputs.push_back(Input(type, seed, request));
  }
}

std::vector<std::string> AllInputs() {
  std::vector<std::string> inputs = GoodInputs();
  AddRandom<v1::AttentionRequest>(0, inputs);
  AddRandom<v1::SelfAttentionRequest>(1, inputs);
  AddRandom<v1::CrossAttentionRequest>(2, inputs);
  AddRandom<v1::AttentionBackwardRequest>(3, inputs);
  AddRandom<v1::MemoryEstimateRequest>(4, inputs);
  AddRandom<v1::BenchmarkRequest>(5, inputs);
  AddRandom<v1::AttentionStreamRequest>(6, inputs);
  return inputs;
}

}  // namespace
}  // namespace attnd::server

std::vector<std::string> attnd::fuzz::Seeds() { return server::AllInputs(); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using attnd::server::kChecks;
  if (size < 2) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  kChecks[data[0] % std::size(kChecks)](bytes, data[1]);
  return 0;
}
