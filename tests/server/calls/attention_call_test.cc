// Runs whole forward calls without gRPC, from the bytes of the request to the
// bytes of the answer, and checks how memory is counted.
#include "server/calls/attention_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "core/reference_attention.h"
#include "google/protobuf/unknown_field_set.h"
#include "server/codec/options_codec.h"
#include "server/planning/estimate.h"
#include "server/shared_memory/shared_region.h"
#include "tests/server/memfd.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using Answer = absl::StatusOr<OutgoingMessage>;

class AttentionCallTest : public ::testing::Test {
 protected:
  std::shared_ptr<UnaryCall> Make(
      Admission& admission, SteadyTime deadline = SteadyTime::max(),
      AttentionMethod method = AttentionMethod::kAttention,
      int64_t max_message_bytes = 1LL << 30) {
    context_ = std::make_unique<ServiceContext>(
        ServiceContext{engine_, admission, max_message_bytes, 1});
    return std::make_shared<UnaryCall>(*context_, method, deadline);
  }

  static std::future<Answer> Start(UnaryCall& call,
                                   const google::protobuf::Message& request) {
    auto promise = std::make_shared<std::promise<Answer>>();
    call.Start(
        InSlices(request.SerializeAsString(), 5000, 1),
        [promise](Answer answer) { promise->set_value(std::move(answer)); });
    return promise->get_future();
  }

  template <typename Response = v1::AttentionResponse>
  static Response Parse(const Answer& answer) {
    Response response;
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      EXPECT_TRUE(response.ParseFromString(Join(*answer)));
    }
    return response;
  }

  // Returns a request that takes minutes to compute.
  static v1::SelfAttentionRequest Endless() {
    v1::SelfAttentionRequest request;
    *request.mutable_sequence() = DataTensor({1 << 20, 1}, 1);
    return request;
  }

  AttentionEngine engine_{{.threads = 2}};
  Admission admission_{1LL << 30, 8};
  std::unique_ptr<ServiceContext> context_;
};

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

std::vector<int64_t> ShapeOf(const v1::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

AttentionProblem ProblemOf(const v1::AttentionRequest& request) {
  const DecodedOptions decoded = DecodeOptions(request.options()).value();
  return AttentionProblem::Create(*DecodeSpec(request.query(), "query"),
                                  *DecodeSpec(request.key(), "key"),
                                  *DecodeSpec(request.value(), "value"),
                                  decoded.options, decoded.outputs)
      .value();
}

// Returns where a message stores the elements of `tensor`.
const void* DataOf(const v1::Tensor& tensor) {
  return tensor.has_values()
             ? static_cast<const void*>(tensor.values().values().data())
             : tensor.data().data();
}

AttentionBuffers BuffersOf(const v1::AttentionRequest& request) {
  return {.query = DataOf(request.query()),
          .key = DataOf(request.key()),
          .value = DataOf(request.value()),
          .bias = DataOf(request.options().bias()),
          .mask = DataOf(request.options().mask())};
}

void ExpectClose(const v1::Tensor& got, DataType type,
                 const std::vector<double>& expected, double tolerance) {
  const void* const data = DataOf(got);
  ASSERT_EQ(got.has_values()
                ? static_cast<size_t>(got.values().values_size())
                : got.data().size() / static_cast<size_t>(SizeOf(type)),
            expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double element =
        ReferenceElement(data, type, static_cast<int64_t>(i));
    if (element == expected[i]) continue;  // also for infinities
    ASSERT_NEAR(element, expected[i], tolerance) << i;
  }
}

// Each case sets other options, and together they cover all options.
struct OptionCase {
  const char* name;
  double tolerance;
  std::function<void(v1::AttentionRequest&)> ask;
};
using R = v1::AttentionRequest;
v1::AttentionOptions& Opt(R& r) { return *r.mutable_options(); }

// NOLINTNEXTLINE(bugprone-throwing-static-initialization): fails the test run
const OptionCase kOptions[] = {
    {"defaults", 1e-5, [](R&) {}},
    {"f16", 3e-3,
     [](R& r) {
       *r.mutable_query() = HalfTensor(v1::DATA_TYPE_F16, {2, 4, 5, 8}, 1);
       *r.mutable_key() = HalfTensor(v1::DATA_TYPE_F16, {2, 2, 7, 8}, 2);
       *r.mutable_value() = HalfTensor(v1::DATA_TYPE_F16, {2, 2, 7, 3}, 3);
     }},
    {"mixed types", 1e-5,
     [](R& r) {
       *r.mutable_query() = HalfTensor(v1::DATA_TYPE_BF16, {2, 4, 5, 8}, 1);
       *r.mutable_key() = HalfTensor(v1::DATA_TYPE_F16, {2, 2, 7, 8}, 2);
       Opt(r).set_output_dtype(v1::DATA_TYPE_F32);
       Opt(r).set_precision(v1::PRECISION_F32);
     }},
    {"bf16", 5e-2,
     [](R& r) {
       *r.mutable_query() = HalfTensor(v1::DATA_TYPE_BF16, {2, 4, 5, 8}, 1);
       *r.mutable_key() = HalfTensor(v1::DATA_TYPE_BF16, {2, 2, 7, 8}, 2);
       *r.mutable_value() = HalfTensor(v1::DATA_TYPE_BF16, {2, 2, 7, 3}, 3);
     }},
    {"layout", 1e-5,
     [](R& r) {
       Opt(r).set_layout(v1::LAYOUT_BSHD);
       *r.mutable_query() = DataTensor({2, 5, 4, 8}, 1);
       *r.mutable_key() = DataTensor({2, 7, 2, 8}, 2);
       *r.mutable_value() = DataTensor({2, 7, 2, 3}, 3);
     }},
    {"values", 1e-5,
     [](R& r) {
       *r.mutable_query() = ValuesTensor({2, 4, 5, 8}, 1);
       *r.mutable_key() = HalfTensor(v1::DATA_TYPE_F16, {2, 2, 7, 8}, 2);
       *Opt(r).mutable_bias() = ValuesTensor({5, 7}, 4);
     }},
    {"positions", 1e-5,
     [](R& r) {
       Opt(r).add_query_offsets(1);
       Opt(r).add_query_offsets(-2);
       Opt(r).set_causal(v1::CAUSAL_TOP_LEFT);
       Opt(r).set_window_left(2);
     }},
    {"windows", 1e-5,
     [](R& r) {
       Opt(r).set_window_left(1);
       Opt(r).set_window_right(2);
     }},
    {"scores", 1e-5,
     [](R& r) {
       Opt(r).set_logits_soft_cap(2);
       Opt(r).mutable_alibi_slopes()->Resize(4, 0.25F);
       Opt(r).mutable_sink_logits()->Resize(4, 0.5F);
     }},
    {"bias", 1e-5,
     [](R& r) {
       *Opt(r).mutable_bias() = HalfTensor(v1::DATA_TYPE_F16, {4, 1, 7}, 4);
     }},
    {"mask", 1e-5,
     [](R& r) {
       *Opt(r).mutable_mask() = MaskTensor({2, 1, 5, 7}, 4);
     }},
    {"lengths", 1e-5,
     [](R& r) {
       Opt(r).add_query_lengths(3);
       Opt(r).add_query_lengths(5);
       Opt(r).add_key_lengths(7);
       Opt(r).add_key_lengths(0);
     }},
    {"ragged", 1e-5,
     [](R& r) {
       *r.mutable_query() = DataTensor({4, 5, 8}, 1);
       *r.mutable_key() = DataTensor({2, 7, 8}, 2);
       *r.mutable_value() = DataTensor({2, 7, 3}, 3);
       for (const int64_t offset : {0, 2, 2, 5}) {
         Opt(r).add_cu_seqlens_q(offset);
       }
       for (const int64_t offset : {0, 3, 6, 7}) {
         Opt(r).add_cu_seqlens_k(offset);
       }
       Opt(r).set_causal(v1::CAUSAL_BOTTOM_RIGHT);
     }},
};

TEST_F(AttentionCallTest, AnswersWhatTheOracleSays) {
  for (const OptionCase& test : kOptions) {
    SCOPED_TRACE(test.name);
    v1::AttentionRequest request = GoodAttention();
    test.ask(request);
    request.mutable_options()->set_return_lse(true);
    const auto call = Make(admission_);
    const auto response = Parse(Start(*call, request).get());
    const AttentionProblem problem = ProblemOf(request);
    const DataType type = problem.params().output_dtype;
    std::vector<double> output(
        static_cast<size_t>(problem.output_bytes() / SizeOf(type)));
    std::vector<double> lse(static_cast<size_t>(problem.lse_bytes()) /
                            sizeof(float));
    ReferenceAttention(problem, BuffersOf(request), output.data(), lse.data());
    ExpectClose(response.output(), type, output, test.tolerance);
    ExpectClose(response.lse(), DataType::kF32, lse, 1e-4);
  }
}

TEST_F(AttentionCallTest, GradientsAreWhatTheOracleSays) {
  for (const bool values : {false, true}) {
    for (const OptionCase& test : kOptions) {
      SCOPED_TRACE(test.name);
      v1::AttentionRequest forward = GoodAttention();
      test.ask(forward);
      if (ProblemOf(forward).params().query_dtype != DataType::kF32 ||
          forward.key().dtype() == v1::DATA_TYPE_F16) {
        continue;
      }
      forward.mutable_options()->set_return_lse(true);
      const auto call = Make(admission_);
      const auto answer = Parse(Start(*call, forward).get());

      const AttentionProblem problem = ProblemOf(forward);
      v1::AttentionBackwardRequest request;
      *request.mutable_query() = forward.query();
      if (values) {
        const auto query = Floats(forward.query().data());
        request.mutable_query()->mutable_values()->mutable_values()->Add(
            query.begin(), query.end());
      }
      *request.mutable_key() = forward.key();
      *request.mutable_value() = forward.value();
      *request.mutable_options() = forward.options();
      *request.mutable_output() = answer.output();
      *request.mutable_lse() = answer.lse();
      *request.mutable_grad_output() = DataTensor(problem.OutputShape(), 9);
      const auto backward = Make(admission_, SteadyTime::max(),
                                 AttentionMethod::kAttentionBackward);
      const Answer gradients = Start(*backward, request).get();
      ASSERT_TRUE(gradients.ok()) << gradients.status();
      const auto response = Parse<v1::AttentionBackwardResponse>(gradients);
      EXPECT_EQ(response.grad_query().has_values(), values);

      const AttentionBuffers in = BuffersOf(forward);
      const auto elements = [](int64_t bytes) {
        return std::vector<double>(static_cast<size_t>(bytes) / sizeof(float));
      };
      auto grad_query = elements(problem.query_bytes());
      auto grad_key = elements(problem.key_bytes());
      auto grad_value = elements(problem.value_bytes());
      const auto grad_output = Floats(request.grad_output().data());
      ReferenceBackward(problem,
                        {.query = static_cast<const float*>(in.query),
                         .key = static_cast<const float*>(in.key),
                         .value = static_cast<const float*>(in.value),
                         .bias = in.bias,
                         .mask = in.mask,
                         .grad_output = grad_output.data()},
                        grad_query.data(), grad_key.data(), grad_value.data());
      EXPECT_EQ(ShapeOf(response.grad_key()), ShapeOf(request.key()));
      ExpectClose(response.grad_query(), DataType::kF32, grad_query, 1e-4);
      ExpectClose(response.grad_key(), DataType::kF32, grad_key, 1e-4);
      ExpectClose(response.grad_value(), DataType::kF32, grad_value, 1e-4);
    }
  }
}

TEST_F(AttentionCallTest, SharedTensorsAreCopiedOnceAndMeanTheSame) {
  const v1::Tensor q = DataTensor({6, 8}, 1);
  const v1::Tensor kv = DataTensor({9, 8}, 2);
  v1::AttentionRequest plain;
  *plain.mutable_query() = q;
  *plain.mutable_key() = kv;
  *plain.mutable_value() = kv;
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = q;
  *cross.mutable_kv_sequence() = kv;
  const auto one = Make(admission_);
  const std::string expected = Parse(Start(*one, plain).get()).output().data();
  const auto two =
      Make(admission_, SteadyTime::max(), AttentionMethod::kCrossAttention);
  EXPECT_EQ(Parse(Start(*two, cross).get()).output().data(), expected);
}

TEST_F(AttentionCallTest, SharedTensorsAreReservedOnce) {
  const TensorSpec spec{.shape = {1, 1, 3000, 64}};
  const auto problem = AttentionProblem::Create(spec, spec, spec, {});
  const auto estimate = engine_.estimator().Estimate(*problem);
  const int64_t tensor = problem->query_bytes();
  v1::SelfAttentionRequest self;
  *self.mutable_sequence() = DataTensor({3000, 64}, 1);
  // The bytes of the message itself also count.
  Admission for_one(estimate.flash_bytes - tensor + tensor / 2, 1);
  const auto one =
      Make(for_one, SteadyTime::max(), AttentionMethod::kSelfAttention);
  Parse(Start(*one, self).get());
  v1::CrossAttentionRequest cross;
  *cross.mutable_queries() = DataTensor({3000, 64}, 1);
  *cross.mutable_kv_sequence() = DataTensor({3000, 64}, 2);
  Admission for_two(estimate.flash_bytes + tensor + tensor / 2, 1);
  const auto two =
      Make(for_two, SteadyTime::max(), AttentionMethod::kCrossAttention);
  Parse(Start(*two, cross).get());
}

// MemoryEstimate tells a client what fits. So a budget of the estimated peak
// must be enough.
TEST_F(AttentionCallTest, ThePeakThatIsEstimatedIsEnough) {
  v1::AttentionRequest plain;
  *plain.mutable_query() = DataTensor({1, 1, 1000, 64}, 1);
  *plain.mutable_key() = DataTensor({1, 1, 1000, 64}, 2);
  *plain.mutable_value() = DataTensor({1, 1, 1000, 64}, 3);
  std::vector<v1::AttentionRequest> requests(4, plain);
  *Opt(requests[1]).mutable_bias() = DataTensor({1, 1, 1000, 1000}, 4);
  *Opt(requests[1]).mutable_mask() = MaskTensor({1, 1, 1, 1000}, 4);
  *requests[2].mutable_query() =
      HalfTensor(v1::DATA_TYPE_BF16, {1, 1, 1000, 64}, 1);
  Opt(requests[2]).set_return_lse(true);
  // These lists have the largest allowed number of entries, and each entry
  // takes several bytes.
  constexpr int64_t kEntries = AttentionProblem::kMaxListedEntries;
  requests[3].Clear();
  for (auto* tensor : {requests[3].mutable_query(), requests[3].mutable_key(),
                       requests[3].mutable_value()}) {
    *tensor = DataTensor({kEntries, 1, 1, 1}, 5);
  }
  Opt(requests[3]).mutable_query_offsets()->Resize(kEntries, 1 << 20);
  Opt(requests[3]).mutable_key_lengths()->Resize(kEntries, 1);
  for (const v1::AttentionRequest& request : requests) {
    v1::MemoryEstimateRequest question;
    question.set_batch(request.query().shape(0));
    question.set_seq_len(request.query().shape(2));
    question.set_dimensions(request.query().shape(3));
    *question.mutable_options() = request.options();
    // A question has one type for all tensors, so it asks for the largest of
    // the types.
    for (auto* tensor : {question.mutable_options()->mutable_bias(),
                         question.mutable_options()->mutable_mask()}) {
      tensor->clear_payload();
    }
    if (!request.options().has_bias()) {
      question.mutable_options()->clear_bias();
      question.mutable_options()->clear_mask();
    }
    Make(admission_);
    const auto estimate =
        EstimateMemory(question, context_->engine, context_->limits());
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    EXPECT_LE(static_cast<int64_t>(request.ByteSizeLong()),
              estimate->required_message_bytes());
    Admission exact(estimate->peak_per_request_bytes(), 1);
    const auto call = Make(exact);
    Parse(Start(*call, request).get());
  }
}

// Occupies every worker of an engine until it is destroyed.
class BusyWorkers final : private TileJob {
 public:
  explicit BusyWorkers(AttentionEngine& engine)
      : threads_(engine.threads()), began_(engine.threads()) {
    engine.scheduler().Submit(
        this, nullptr,
        [this](const absl::Status&, const JobTimes&) { over_.set_value(); });
    began_.wait();
  }
  ~BusyWorkers() override {
    go_on_.count_down();
    over_.get_future().wait();
  }

 private:
  std::vector<Phase> Phases() const override {
    return {{.tasks = threads_, .slots = threads_}};
  }
  Slice Run(int64_t, int64_t, int64_t, SliceControl&) override {
    began_.count_down();
    go_on_.wait();
    return Slice::kDone;
  }

  const int64_t threads_;
  std::latch began_;
  std::latch go_on_{1};
  std::promise<void> over_;
};

// The calling thread must not spend time on copies. This test changes tensors
// after the call has begun and before a worker is free, and expects an answer
// that is computed from the changed tensors.
TEST_F(AttentionCallTest, WhoCallsCopiesNothingLarge) {
  RegionRegistry registry(1 << 30);
  const auto region = registry.Register(MakeMemfd(1 << 20), 1).value();
  const ServiceContext context{engine_, admission_, 1LL << 30, 1, &registry};
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1000, 64}, 1);
  *request.mutable_key() = DataTensor({1000, 64}, 2);
  *request.mutable_value() = DataTensor({1000, 64}, 3);
  v1::Tensor& mask = *Opt(request).mutable_mask();
  mask.set_dtype(v1::DATA_TYPE_BOOL);
  mask.add_shape(1000);
  mask.add_shape(1000);
  mask.mutable_shared_memory()->set_handle(region->handle());
  request.GetReflection()->MutableUnknownFields(&request)->AddLengthDelimited(
      /*number=*/999, std::string(1 << 20, 'x'));
  const std::string twos = [] {
    const std::vector<float> numbers(64000, 2);
    return std::string(reinterpret_cast<const char*>(numbers.data()),
                       numbers.size() * sizeof(float));
  }();
  std::string bytes = request.SerializeAsString();
  const size_t value_begin = bytes.find(request.value().data());
  const auto call = std::make_shared<UnaryCall>(
      context, AttentionMethod::kAttention, SteadyTime::max());
  std::promise<Answer> answer;
  {
    const BusyWorkers busy(engine_);
    call->Start(ReceivedMessage({{bytes}}, nullptr),
                [&](Answer got) { answer.set_value(std::move(got)); });
    bytes.replace(value_begin, twos.size(), twos);
    std::fill_n(region->writable_data(), 1000 * 1000, std::byte{1});
  }
  const auto response = Parse(answer.get_future().get());
  ASSERT_EQ(response.output().data().size(), twos.size());
  std::vector<float> output(64000);
  std::memcpy(output.data(), response.output().data().data(), twos.size());
  // The answer consists of twos if the workers read the new values, and if they
  // read the new mask, which hides nothing.
  EXPECT_THAT(output, ::testing::Each(::testing::FloatNear(2, 1e-5F)));
}

// The workers copy tensors from the message, also if it has large unknown
// fields.
TEST_F(AttentionCallTest, WorkersLoadWhatIsLarge) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1, 4, 1500, 64}, 1);
  *request.mutable_key() = DataTensor({1, 4, 1400, 64}, 2);
  *request.mutable_value() = DataTensor({1, 4, 1400, 64}, 3);
  const AttentionProblem problem = ProblemOf(request);
  std::string expected(static_cast<size_t>(problem.output_bytes()), '\0');
  AttentionBuffers buffers = BuffersOf(request);
  buffers.output = expected.data();
  ASSERT_TRUE(engine_.Run(problem, buffers).ok());
  const auto message_bytes = static_cast<int64_t>(request.ByteSizeLong());
  for (const bool padded : {false, true}) {
    if (padded) {
      constexpr int kUnknownField = 999;
      request.GetReflection()
          ->MutableUnknownFields(&request)
          ->AddLengthDelimited(kUnknownField, std::string(8 << 20, 'x'));
    }
    auto call = Make(admission_);
    {
      const Answer answer = Start(*call, request).get();
      EXPECT_TRUE(Parse(answer).output().data() == expected);
      call.reset();
    }
    EXPECT_TRUE(admission_.WaitIdle(std::chrono::seconds(60)));
    EXPECT_EQ(admission_.usage().bytes, 0);
  }
  // This budget is enough for the request without the unknown field, but not
  // for the whole message.
  Admission narrow(message_bytes + (8 << 20) + (1 << 20), 1);
  const auto refused = Make(narrow);
  EXPECT_TRUE(
      absl::IsResourceExhausted(Start(*refused, request).get().status()));
}

TEST_F(AttentionCallTest, GivesBackEverythingOnceTheAnswerIsGone) {
  auto call = Make(admission_);
  {
    const Answer answer = Start(*call, GoodAttention()).get();
    call.reset();
    ASSERT_TRUE(answer.ok());
    // A client that has the answer can call again at once, because the slot is
    // free.
    EXPECT_EQ(admission_.usage().in_flight, 0);
    EXPECT_EQ(admission_.usage().reservations, 1);
    EXPECT_GT(admission_.usage().bytes, 0);
    // The engine releases its own reference to the call when its callback
    // returns.
  }
  EXPECT_TRUE(admission_.WaitIdle(std::chrono::seconds(60)));
  EXPECT_EQ(admission_.usage().bytes, 0);
}

TEST_F(AttentionCallTest, EmptyProblemsHaveEmptyAnswers) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({0, 4}, 1);
  *request.mutable_key() = DataTensor({3, 4}, 1);
  *request.mutable_value() = DataTensor({3, 5}, 1);
  const auto call = Make(admission_);
  const auto response = Parse(Start(*call, request).get());
  EXPECT_EQ(response.output().shape(0), 0);
  EXPECT_EQ(response.output().shape(1), 5);
  EXPECT_EQ(response.output().payload_case(), v1::Tensor::kData);
}

TEST_F(AttentionCallTest, RefusesWhatNeverFits) {
  Admission tight(100'000, 8);
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() = DataTensor({300, 64}, 1);
  const auto call =
      Make(tight, SteadyTime::max(), AttentionMethod::kSelfAttention);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.reason, "MEMORY_BUDGET");
  EXPECT_EQ(refusal.retry_ms, -1);
}

TEST_F(AttentionCallTest, AdvisesToRetryWhatDoesNotFitNow) {
  Admission busy(10'000'000, 8);
  const auto held = busy.Admit(9'950'000);
  v1::SelfAttentionRequest request;
  *request.mutable_sequence() = DataTensor({300, 64}, 1);
  const auto call =
      Make(busy, SteadyTime::max(), AttentionMethod::kSelfAttention);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.reason, "MEMORY_BUDGET");
  EXPECT_GT(refusal.retry_ms, 0);
}

TEST_F(AttentionCallTest, RefusesAnAnswerAboveTheMessageLimit) {
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({1000, 1}, 1);
  *request.mutable_key() = DataTensor({1, 1}, 1);
  *request.mutable_value() = DataTensor({1, 100}, 1);
  const auto call =
      Make(admission_, SteadyTime::max(), AttentionMethod::kAttention, 100'000);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.code,
            static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(refusal.reason, "MESSAGE_TOO_LARGE");
}

// The list has a million numbers of one byte each. Copying it several times
// would be expensive.
TEST_F(AttentionCallTest, RefusesLongListsByName) {
  v1::AttentionRequest request = GoodAttention();
  request.mutable_options()->mutable_key_lengths()->Resize(1'000'000, 1);
  const auto call = Make(admission_);
  const Refusal refusal = RefusalOf(Start(*call, request).get().status());
  EXPECT_EQ(refusal.field, "options.key_lengths");
  EXPECT_EQ(refusal.message,
            "options.key_lengths: expected at most 65537 numbers, got 1000000");
}

TEST_F(AttentionCallTest, CancelStopsWhatRuns) {
  const auto call =
      Make(admission_, SteadyTime::max(), AttentionMethod::kSelfAttention);
  std::future<Answer> answer = Start(*call, Endless());
  EXPECT_EQ(answer.wait_for(std::chrono::milliseconds(100)),
            std::future_status::timeout);
  call->Cancel();
  EXPECT_EQ(RefusalOf(answer.get().status()).reason, "CANCELLED");
}

TEST_F(AttentionCallTest, DeadlinesStopWhatRunsAndWhatHasNotBegun) {
  const auto late =
      Make(admission_,
           std::chrono::steady_clock::now() + std::chrono::milliseconds(50),
           AttentionMethod::kSelfAttention);
  EXPECT_EQ(RefusalOf(Start(*late, Endless()).get().status()).reason,
            "DEADLINE_EXCEEDED");
  const auto expired = Make(admission_, std::chrono::steady_clock::now(),
                            AttentionMethod::kSelfAttention);
  EXPECT_EQ(RefusalOf(Start(*expired, Endless()).get().status()).reason,
            "DEADLINE_EXCEEDED");
}

TEST_F(AttentionCallTest, MalformedMessagesAreRefused) {
  const auto call = Make(admission_);
  auto promise = std::make_shared<std::promise<Answer>>();
  call->Start(InSlices("\x0a\x05", 10, 1), [promise](Answer answer) {
    promise->set_value(std::move(answer));
  });
  const Answer answer = promise->get_future().get();
  EXPECT_EQ(RefusalOf(answer.status()).reason, "MALFORMED_MESSAGE");
}

// A request with so many elements sent as numbers that the decode thread
// decodes it. It computes so little that the receiving thread would answer it
// otherwise.
v1::SelfAttentionRequest Heavy() {
  v1::SelfAttentionRequest request;
  static_assert(8 * 150 > kMaxLightNumbers);
  *request.mutable_sequence() = ValuesTensor({8, 150}, 1);
  return request;
}

// Runs calls while the decode thread is busy. It stays busy until Release.
class DecodedElsewhereTest : public AttentionCallTest {
 protected:
  DecodedElsewhereTest() {
    decoder_->Run(0, [this] { released_.get_future().wait(); });
  }

  std::shared_ptr<UnaryCall> Make(SteadyTime deadline = SteadyTime::max()) {
    auto call = AttentionCallTest::Make(admission_, deadline,
                                        AttentionMethod::kSelfAttention);
    context_->decoder = &*decoder_;
    return call;
  }
  static bool IsReady(const std::future<Answer>& answer) {
    return answer.wait_for(std::chrono::seconds(0)) ==
           std::future_status::ready;
  }
  void Release() { released_.set_value(); }

  std::promise<void> released_;
  std::optional<DecodeThread> decoder_{std::in_place};
};

TEST_F(DecodedElsewhereTest, OnlyHeavyMessagesWaitForTheDecodeThread) {
  const auto heavy_call = Make();
  std::future<Answer> heavy = Start(*heavy_call, Heavy());
  EXPECT_FALSE(IsReady(heavy));
  EXPECT_EQ(admission_.usage().in_flight, 1);
  EXPECT_GE(admission_.usage().bytes,
            static_cast<int64_t>(Heavy().ByteSizeLong()));
  v1::SelfAttentionRequest light;
  *light.mutable_sequence() = DataTensor({100, 64}, 1);
  const auto light_call = std::make_shared<UnaryCall>(
      *context_, AttentionMethod::kSelfAttention, SteadyTime::max());
  Parse(Start(*light_call, light).get());
  EXPECT_FALSE(IsReady(heavy));
  Release();
  const auto response = Parse(heavy.get());
  EXPECT_EQ(response.output().values().values_size(), 8 * 150);
}

TEST_F(DecodedElsewhereTest, WhatWaitsCanBeCancelled) {
  const auto call = Make();
  std::future<Answer> answer = Start(*call, Heavy());
  EXPECT_FALSE(IsReady(answer));
  call->Cancel();
  Release();
  EXPECT_EQ(RefusalOf(answer.get().status()).reason, "CANCELLED");
  EXPECT_EQ(admission_.usage().in_flight, 0);
}

TEST_F(DecodedElsewhereTest, WhatWaitsTooLongIsNotDecoded) {
  const SteadyTime deadline =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  const auto call = Make(deadline);
  std::future<Answer> answer = Start(*call, Heavy());
  answer.wait_until(deadline);
  Release();
  EXPECT_EQ(RefusalOf(answer.get().status()).reason, "DEADLINE_EXCEEDED");
}

// A drain waits for a call that waits for the decode thread, and the call
// leaves nothing behind.
TEST_F(DecodedElsewhereTest, ADrainWaitsForWhatWaits) {
  auto call = Make();
  std::future<Answer> answer = Start(*call, Heavy());
  call.reset();
  EXPECT_FALSE(admission_.WaitIdle(std::chrono::milliseconds(1)));
  Release();
  EXPECT_TRUE(answer.get().ok());
  // The answer holds the call, and so does the thread until its work is gone.
  answer = {};
  EXPECT_TRUE(admission_.WaitIdle(std::chrono::minutes(1)));
  EXPECT_EQ(admission_.usage().bytes, 0);
}

TEST_F(DecodedElsewhereTest, WhatIsRefusedThereGivesEverythingBack) {
  v1::SelfAttentionRequest request = Heavy();
  request.mutable_sequence()->mutable_values()->add_values(1);
  auto call = Make();
  std::future<Answer> answer = Start(*call, request);
  Release();
  EXPECT_EQ(RefusalOf(answer.get().status()).field, "sequence.values");
  call.reset();
  EXPECT_TRUE(admission_.WaitIdle(std::chrono::minutes(1)));
  EXPECT_EQ(admission_.usage().bytes, 0);
}

}  // namespace
}  // namespace attnd::server
