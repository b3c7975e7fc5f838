// Fuzzes whole calls. An input that decodes is computed and answered by the
// classes that serve the rpcs. Findings are what the sanitizers report, an
// answer that no client can read, an error that blames the server, and memory
// that is not given back.
//
// An input is a byte that picks the rpc, a byte that says how messages are cut
// into slices, and the message. For AttentionStream, each message follows its
// length in two bytes, the low one first; the rest is the last message.
//
// Problems are small, because inline tensors are no larger than the input and
// because the context has a small budget and small limits. One scheduler with
// two workers computes them.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "server/calls/benchmark.h"
#include "server/codec/message_parser.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/server/case_messages.h"
#include "tests/server/message_tools.h"
#include "tests/server/whole_calls.h"

namespace attnd::server {
namespace {

using fuzz::Require;
using testing::AttentionCase;
using testing::CaseShape;
using testing::GradientCase;
using testing::RandomCase;
using testing::RandomGradientCase;

constexpr int64_t kBudgetBytes = int64_t{16} << 20;
constexpr int64_t kMaxBenchmarkVectors = 128;

// All calls share this state, so a call that leaves something behind affects
// the next one.
struct Fixture {
  AttentionEngine engine{{.threads = 2}};
  Admission admission{kBudgetBytes, 8, &engine.pool()};
  ServiceContext context{engine, admission, kBudgetBytes, kMaxBenchmarkVectors};
};

Fixture& TheFixture() {
  static Fixture fixture;
  return fixture;
}

void CheckStatus(const absl::Status& status) {
  Require(!absl::IsInternal(status) && !absl::IsUnknown(status),
          "no error blames the server");
  if (!status.ok()) {
    Require(!RefusalOf(status).reason.empty(), "a refusal has a reason");
  }
}

// Checks that the answer is an error or a single valid message.
template <typename Response>
void CheckAnswer(const WholeAnswer& answer) {
  CheckStatus(answer.status);
  Require(answer.messages.size() == (answer.status.ok() ? 1 : 0),
          "one message, or an error");
  if (!answer.status.ok()) return;
  Response response;
  Require(response.ParseFromString(answer.messages.front()),
          "an answer parses");
}

// Checks that a tensor has as many bytes as its shape requires.
void CheckTensor(const v1::Tensor& tensor) {
  size_t elements = 1;
  for (const int64_t extent : tensor.shape()) {
    elements *= static_cast<size_t>(extent);
  }
  const size_t size = tensor.dtype() == v1::DATA_TYPE_F32 ? 4 : 2;
  Require(tensor.has_values()
              ? static_cast<size_t>(tensor.values().values_size()) == elements
              : tensor.data().size() == elements * size,
          "a tensor has the bytes of its shape");
}

void CallMethod(AttentionMethod method, const std::string& bytes,
                const Slicing& slicing) {
  const WholeAnswer answer =
      CallUnary(TheFixture().context, method, bytes, slicing);
  if (method == AttentionMethod::kAttentionBackward) {
    CheckAnswer<v1::AttentionBackwardResponse>(answer);
    return;
  }
  // The three forward methods have the same answer.
  CheckAnswer<v1::AttentionResponse>(answer);
  if (!answer.status.ok()) return;
  v1::AttentionResponse response;
  (void)response.ParseFromString(answer.messages.front());
  CheckTensor(response.output());
  if (response.has_lse()) CheckTensor(response.lse());
}

void CallOf(const std::string& bytes, const Slicing& slicing) {
  CallMethod(AttentionMethod::kAttention, bytes, slicing);
}
void CallOfSelf(const std::string& bytes, const Slicing& slicing) {
  CallMethod(AttentionMethod::kSelfAttention, bytes, slicing);
}
void CallOfCross(const std::string& bytes, const Slicing& slicing) {
  CallMethod(AttentionMethod::kCrossAttention, bytes, slicing);
}
void CallOfBackward(const std::string& bytes, const Slicing& slicing) {
  CallMethod(AttentionMethod::kAttentionBackward, bytes, slicing);
}

void CallOfEstimate(const std::string& bytes, const Slicing& slicing) {
  CheckAnswer<v1::MemoryEstimateResponse>(
      CallMemoryEstimate(TheFixture().context, bytes, slicing));
}

void CallOfInfo(const std::string& bytes, const Slicing& slicing) {
  CheckAnswer<v1::GetServerInfoResponse>(
      CallServerInfo(TheFixture().context, bytes, slicing));
}

// Runs the benchmark without the stream around it, which would take a thread,
// and with a shorter measurement of the peak, which would take 30 ms.
void CallOfBenchmark(const std::string& bytes, const Slicing& slicing) {
  const ServiceContext& context = TheFixture().context;
  const ReceivedMessage received =
      InSlices(bytes, slicing.max_bytes, slicing.seed);
  auto reservation = context.admission.Admit(received.size_bytes());
  Require(reservation.ok(), "there is a slot");
  v1::BenchmarkRequest request;
  const auto split = ParseMessage(received, *reservation, request);
  if (!split.ok()) return CheckStatus(split.status());
  auto spec = DecodeBenchmark(request, context);
  if (!spec.ok()) return CheckStatus(spec.status());
  constexpr int64_t kMaxElements = 1 << 16;
  const AttentionParams& params = spec->problem.params();
  if (params.num_q_heads * params.q_len * params.head_dim > kMaxElements) {
    return;
  }
  spec->peak_time = std::chrono::microseconds(50);
  spec->repetitions = std::min<int64_t>(spec->repetitions, 2);
  const auto outcome = RunBenchmark(
      *spec, context, *reservation, StopSignal(),
      [](const v1::BenchmarkProgress& progress) {
        Require(progress.fraction() >= 0 && progress.fraction() < 1,
                "progress is a part of the whole");
      });
  CheckStatus(outcome.status());
  if (!outcome.ok()) return;
  // The numbers are below 1 and are rounded at most to bf16.
  Require(outcome->result.max_abs_error() < 0.02, "flash computes attention");
}

void CallOfStream(const std::string& bytes, const Slicing& slicing) {
  std::vector<std::string> messages;
  absl::string_view rest = bytes;
  while (rest.size() >= 2) {
    const size_t size =
        static_cast<uint8_t>(rest[0]) +
        (static_cast<size_t>(static_cast<uint8_t>(rest[1])) << 8U);
    rest.remove_prefix(2);
    messages.emplace_back(rest.substr(0, size));
    rest.remove_prefix(std::min(size, rest.size()));
  }
  const WholeAnswer answer =
      CallStream(TheFixture().context, messages, slicing);
  CheckStatus(answer.status);
  if (!answer.status.ok()) return;
  const auto joined = JoinStream(answer.messages);
  Require(joined.ok(), "a stream's answer is one");
  CheckTensor(joined->output());
  if (joined->has_lse()) CheckTensor(joined->lse());
}

constexpr void (*kCalls[])(const std::string&, const Slicing&) = {
    CallOf,         CallOfSelf, CallOfCross,     CallOfBackward,
    CallOfEstimate, CallOfInfo, CallOfBenchmark, CallOfStream};

void Check(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  kCalls[data[0] % std::size(kCalls)](
      bytes, {.max_bytes = size_t{4} << data[1] % 10, .seed = data[1]});
  Admission& admission = TheFixture().admission;
  Require(admission.WaitIdle(std::chrono::minutes(1)) &&
              admission.usage().bytes == 0 && admission.usage().in_flight == 0,
          "a call gives back all that it held");
}

// `rpc` is the index in kCalls.
std::string Input(char rpc, const std::string& bytes) {
  return std::string{rpc, static_cast<char>(bytes.size() % 10)} + bytes;
}

std::string InputOfStream(const std::vector<std::string>& messages) {
  std::string bytes;
  for (const std::string& message : messages) {
    bytes += static_cast<char>(message.size() % 256);
    bytes += static_cast<char>(message.size() / 256);
    bytes += message;
  }
  return Input(7, bytes);
}

std::vector<std::string> AllSeeds() {
  std::vector<std::string> inputs;
  constexpr uint64_t kCases = 24;
  constexpr int64_t kMaxLength = 5;
  for (uint64_t seed = 1; seed <= kCases; ++seed) {
    std::mt19937_64 rng(seed);
    CaseShape shape = RandomCase(rng, kMaxLength);
    // The sizes are small, so that a mutation is likely to hit a byte that
    // matters.
    shape.head_dim = 1 + static_cast<int64_t>(rng() % 5);
    shape.v_head_dim = 1 + static_cast<int64_t>(rng() % 5);
    const AttentionCase test(shape, seed);
    inputs.push_back(Input(0, RequestOf(test).SerializeAsString()));
    inputs.push_back(Input(2, CrossRequestOf(test).SerializeAsString()));
    inputs.push_back(Input(4, EstimateRequestOf(shape).SerializeAsString()));
    inputs.push_back(InputOfStream(StreamOf(RequestOf(test), 1 + rng() % 90)));
    shape = RandomGradientCase(rng, kMaxLength);
    shape.head_dim = shape.v_head_dim = 3;
    const GradientCase gradient(shape, seed);
    inputs.push_back(Input(3, BackwardRequestOf(gradient).SerializeAsString()));
  }
  for (const DataType type : {DataType::kF32, DataType::kF16}) {
    const AttentionCase test({.q_len = 3,
                              .kv_len = 3,
                              .head_dim = 5,
                              .v_head_dim = 5,
                              .query_dtype = type,
                              .key_dtype = type,
                              .value_dtype = type},
                             1);
    v1::SelfAttentionRequest request = SelfRequestOf(test);
    inputs.push_back(Input(1, request.SerializeAsString()));
    if (type != DataType::kF32) continue;
    UseValues(*request.mutable_sequence());
    inputs.push_back(Input(1, request.SerializeAsString()));
  }
  inputs.push_back(Input(5, ""));
  // One size gives multiples of 64 bytes, and the other one does not.
  for (const v1::DataType type :
       {v1::DATA_TYPE_F32, v1::DATA_TYPE_F16, v1::DATA_TYPE_BF16}) {
    for (const int64_t size : {32, 9}) {
      v1::BenchmarkRequest request;
      request.set_num_vectors(size);
      request.set_dimensions(size);
      request.set_dtype(type);
      request.set_repetitions(1);
      inputs.push_back(Input(6, request.SerializeAsString()));
    }
  }
  return inputs;
}

}  // namespace
}  // namespace attnd::server

std::vector<std::string> attnd::fuzz::Seeds() { return server::AllSeeds(); }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size >= 2) attnd::server::Check(data, size);
  return 0;
}
