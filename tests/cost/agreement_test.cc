// Checks that admission, MemoryEstimate and `attnctl estimate --offline` agree
// to the byte about what a call costs.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/attention_options.h"
#include "client/attnctl/offline_estimate.h"
#include "server/shared_memory/shared_region.h"
#include "tests/server/case_messages.h"
#include "tests/server/memfd.h"
#include "tests/server/message_tools.h"
#include "tests/server/whole_calls.h"

namespace attnd::server {
namespace {

using testing::Affordable;
using testing::AttentionCase;
using testing::CaseShape;
using testing::RandomCase;

constexpr int64_t kMaxLength = 60;
constexpr int64_t kMaxMessageBytes = int64_t{1} << 28;

client::ConstTensor Described(client::DataType type,
                              const std::vector<int64_t>& shape) {
  return {client::ConstElements(type, std::span<const std::byte>()), shape};
}

client::AttentionOptions ClientOptionsOf(const AttentionOptions& in) {
  client::AttentionOptions out;
  ForEachOption([&](const char*, auto member, const auto&...) {
    const auto& from = member(in);
    if constexpr (std::is_same_v<decltype(from),
                                 const std::optional<TensorSpec>&>) {
      if (from) member(out) = Described(from->dtype, from->shape);
    } else {
      member(out) = from;
    }
  });
  return out;
}

// The same question, as a request to a server and as the flags of attnctl.
struct Question {
  v1::MemoryEstimateRequest request;
  client::MemoryEstimateOptions flags;
};

Question QuestionOf(const CaseShape& shape, client::Transport transport) {
  Question question;
  question.request = EstimateRequestOf(shape);
  question.request.set_transport(static_cast<v1::Transport>(transport));
  question.flags = {.batch = shape.batch,
                    .num_q_heads = shape.num_kv_heads * shape.group,
                    .num_kv_heads = shape.num_kv_heads,
                    .q_len = shape.q_len,
                    .kv_len = shape.kv_len,
                    .head_dim = shape.head_dim,
                    .v_head_dim = shape.v_head_dim,
                    .dtype = shape.query_dtype,
                    .output_dtype = shape.outputs.output_dtype,
                    .attention = ClientOptionsOf(shape.options),
                    .return_lse = shape.outputs.return_lse,
                    .transport = transport};
  return question;
}

// Returns a random problem, or nothing if a question cannot describe it. A
// question cannot have a size of 0, because that means the default, and has one
// type for all three tensors.
std::optional<CaseShape> RandomQuestion(std::mt19937_64& rng) {
  CaseShape shape = RandomCase(rng, kMaxLength);
  if (shape.batch * shape.q_len * shape.kv_len == 0) return std::nullopt;
  shape.rank = shape.options.cu_seqlens_q.empty() ? 4 : 3;
  shape.key_dtype = shape.value_dtype = shape.query_dtype;
  return shape;
}

class AgreementTest : public ::testing::Test {
 protected:
  ServiceContext Context(Admission& admission) {
    return {engine_, admission, kMaxMessageBytes, 1, &registry_};
  }

  // Return what a server answers, and what attnctl computes without a server.
  absl::StatusOr<v1::MemoryEstimateResponse> Served(const Question& question) {
    const WholeAnswer answer = CallMemoryEstimate(
        Context(large_), question.request.SerializeAsString());
    if (!answer.status.ok()) return answer.status;
    v1::MemoryEstimateResponse response;
    EXPECT_TRUE(response.ParseFromString(answer.messages.front()));
    return response;
  }
  absl::StatusOr<client::MemoryEstimate> Offline(Question question) {
    if (question.flags.threads == 0) {
      question.flags.threads = engine_.threads();
    }
    return attnctl::EstimateOffline(question.flags, Context(large_).limits());
  }

  // Expects that both answer the question alike. Returns whether there is an
  // answer.
  bool ExpectAgreement(const Question& question) {
    const auto served = Served(question);
    const auto offline = Offline(question);
    EXPECT_EQ(served.ok(), offline.ok())
        << served.status() << " " << offline.status();
    if (!served.ok() || !offline.ok()) {
      const Refusal refusal = RefusalOf(served.status());
      const Refusal refused_offline = RefusalOf(offline.status());
      EXPECT_EQ(refused_offline.code, refusal.code);
      EXPECT_EQ(refused_offline.reason, refusal.reason);
      // A flag has the name of its field, with dashes.
      const std::string flag =
          absl::StrCat("--", absl::StrReplaceAll(refusal.field, {{"_", "-"}}));
      EXPECT_EQ(refused_offline.field,
                refusal.field == "<none>" ? "<none>" : flag);
      return false;
    }
    EXPECT_EQ(served->naive_bytes(), offline->naive_bytes);
    EXPECT_EQ(served->flash_bytes(), offline->flash_bytes);
    EXPECT_EQ(served->reduction_ratio(), offline->reduction_ratio);
    EXPECT_EQ(served->input_bytes(), offline->input_bytes);
    EXPECT_EQ(served->output_bytes(), offline->output_bytes);
    EXPECT_EQ(served->workspace_bytes(), offline->workspace_bytes);
    EXPECT_EQ(served->wire_bytes(), offline->wire_bytes);
    EXPECT_EQ(served->peak_per_request_bytes(),
              offline->peak_per_request_bytes);
    EXPECT_EQ(served->peak_bytes(), offline->peak_bytes);
    EXPECT_EQ(served->required_message_bytes(),
              offline->required_message_bytes);
    EXPECT_EQ(served->flops(), offline->flops);
    EXPECT_EQ(served->fits(), offline->fits);
    EXPECT_EQ(served->limiting_factor(), offline->limiting_factor);
    EXPECT_EQ(
        served->max_seq_len() + served->max_batch() + served->max_concurrency(),
        offline->largest);
    return true;
  }

  // Returns `request` with all tensors, and those of the answer, in shared
  // memory.
  v1::AttentionRequest Shared(v1::AttentionRequest request,
                              const AttentionProblem& problem) {
    int64_t end_bytes = 0;
    const auto place = [&](int64_t size_bytes) {
      v1::SharedMemory memory;
      memory.set_handle(region_->handle());
      memory.set_offset_bytes(end_bytes);
      end_bytes += (size_bytes + 63) / 64 * 64;
      EXPECT_LE(end_bytes, kRegionBytes);
      return memory;
    };
    const auto move = [&](v1::Tensor& tensor) {
      const std::string data = tensor.data();
      *tensor.mutable_shared_memory() =
          place(static_cast<int64_t>(data.size()));
      std::memcpy(
          region_->writable_data() + tensor.shared_memory().offset_bytes(),
          data.data(), data.size());
    };
    v1::AttentionOptions& options = *request.mutable_options();
    move(*request.mutable_query());
    move(*request.mutable_key());
    move(*request.mutable_value());
    if (options.has_bias()) move(*options.mutable_bias());
    if (options.has_mask()) move(*options.mutable_mask());
    *options.mutable_output_region() = place(problem.output_bytes());
    if (options.return_lse()) {
      *options.mutable_lse_region() = place(problem.lse_bytes());
    }
    return request;
  }

  static constexpr int64_t kRegionBytes = int64_t{1} << 26;

  AttentionEngine engine_{{.threads = 2}};
  Admission large_{int64_t{1} << 40, 8};
  RegionRegistry registry_{kRegionBytes};
  std::shared_ptr<const SharedRegion> region_ =
      registry_.Register(MakeMemfd(kRegionBytes), 1).value();
};

TEST_F(AgreementTest, EveryProblemCostsTheSameForAll) {
  int checked = 0;
  for (uint64_t seed = 1; seed <= Affordable(300); ++seed) {
    std::mt19937_64 rng(seed);
    const std::optional<CaseShape> shape = RandomQuestion(rng);
    if (!shape) continue;
    ++checked;
    const AttentionCase test(*shape, seed);
    const v1::AttentionRequest request = RequestOf(test);
    const std::vector<std::string> chunks = StreamOf(request, 5000);
    const std::string shared =
        Shared(request, test.problem()).SerializeAsString();
    const std::pair<client::Transport,
                    std::function<WholeAnswer(const ServiceContext&)>>
        transports[] = {
            {client::Transport::kInline,
             [&](const ServiceContext& context) {
               return CallUnary(context, AttentionMethod::kAttention,
                                request.SerializeAsString());
             }},
            {client::Transport::kStream,
             [&](const ServiceContext& context) {
               return CallStream(context, chunks);
             }},
            {client::Transport::kSharedMemory,
             [&](const ServiceContext& context) {
               return CallUnary(context, AttentionMethod::kAttention, shared);
             }}};
    for (const auto& [transport, call] : transports) {
      SCOPED_TRACE(absl::StrCat("seed ", seed, ", transport ",
                                static_cast<int>(transport), ", ",
                                test.ToString()));
      Question question = QuestionOf(*shape, transport);
      question.flags.concurrency = static_cast<int64_t>(1 + rng() % 9);
      question.request.set_concurrency(question.flags.concurrency);
      ASSERT_TRUE(ExpectAgreement(question));
      const auto served = Served(question);
      Admission enough(served->peak_per_request_bytes(), 1);
      const WholeAnswer answer = call(Context(enough));
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      Admission too_little(served->peak_per_request_bytes() - 1, 1);
      EXPECT_EQ(RefusalOf(call(Context(too_little)).status).reason,
                "MEMORY_BUDGET");
      ASSERT_FALSE(HasFailure());
    }
  }
  EXPECT_GT(checked, Affordable(300) / 2);
}

// A size in a question. The test draws numbers of up to `bits` bits for it.
struct Size {
  const char* field;
  int64_t client::MemoryEstimateOptions::*flag;
  unsigned bits;
};
constexpr Size kSizes[] = {
    {"seq_len", &client::MemoryEstimateOptions::seq_len, 62},
    {"dimensions", &client::MemoryEstimateOptions::dimensions, 12},
    {"batch", &client::MemoryEstimateOptions::batch, 30},
    {"num_q_heads", &client::MemoryEstimateOptions::num_q_heads, 20},
    {"num_kv_heads", &client::MemoryEstimateOptions::num_kv_heads, 1},
    {"q_len", &client::MemoryEstimateOptions::q_len, 62},
    {"kv_len", &client::MemoryEstimateOptions::kv_len, 62},
    {"head_dim", &client::MemoryEstimateOptions::head_dim, 13},
    {"v_head_dim", &client::MemoryEstimateOptions::v_head_dim, 13},
    {"threads", &client::MemoryEstimateOptions::threads, 63},
    {"concurrency", &client::MemoryEstimateOptions::concurrency, 40}};

// Some of the numbers are negative or missing. Any goal may be asked for.
TEST_F(AgreementTest, AbsurdSizesAreAnsweredOrRefusedAlike) {
  const auto* type = v1::MemoryEstimateRequest::descriptor();
  int answered = 0;
  for (uint64_t seed = 1; seed <= Affordable(3000); ++seed) {
    std::mt19937_64 rng(seed);
    CaseShape shape;
    // The bytes of lists once overflowed if the sizes were absurd.
    if (rng() % 2 == 0) shape.options.query_offsets = {1 << 20};
    Question question =
        QuestionOf(shape, static_cast<client::Transport>(1 + rng() % 3));
    for (const Size& size : kSizes) {
      if (rng() % 3 == 0) continue;
      auto number = static_cast<int64_t>(rng() >> (63 - rng() % size.bits));
      if (rng() % 40 == 0) number = -number;
      question.flags.*size.flag = number;
      question.request.GetReflection()->SetInt64(
          &question.request, type->FindFieldByName(size.field), number);
    }
    constexpr EstimateGoal kGoals[] = {
        EstimateGoal::kEstimate, EstimateGoal::kMaxSeqLen,
        EstimateGoal::kMaxBatch, EstimateGoal::kMaxConcurrency};
    question.flags.goal = kGoals[rng() % 4];
    question.flags.budget_bytes =
        rng() % 2 == 0 ? 0 : static_cast<int64_t>(rng() >> (1 + rng() % 63));
    if (question.flags.goal == EstimateGoal::kEstimate) {
      question.flags.budget_bytes = 0;
    } else {
      question.request.GetReflection()->SetInt64(
          &question.request,
          type->FindFieldByNumber(static_cast<int>(question.flags.goal)),
          question.flags.budget_bytes);
    }
    SCOPED_TRACE(
        absl::StrCat("seed ", seed, ", ", question.request.ShortDebugString()));
    if (ExpectAgreement(question)) ++answered;
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(answered, Affordable(3000) / 10);
}

}  // namespace
}  // namespace attnd::server
