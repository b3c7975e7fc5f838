// Calls a server with many clients at once. Every answer must be correct, and
// must have the same bits as without other calls.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/reference_attention.h"
#include "server/server.h"
#include "tests/server/life_server.h"
#include "tests/server/message_tools.h"
#include "tests/support/raw_call.h"

namespace attnd::server {
namespace {

using ::attnd::testing::RawClient;
using ::attnd::testing::RawReply;

// A request with the answer of the oracle, and the answer of a server that has
// no other calls.
struct LoadCase {
  std::string request;
  std::vector<double> expected;
  std::string alone;  // the bytes of the output
};

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

LoadCase MakeCase(uint64_t seed) {
  std::mt19937_64 rng(seed);
  const auto positive = [&](int64_t high) {
    return 1 + static_cast<int64_t>(rng() % static_cast<uint64_t>(high));
  };
  const int64_t batch = positive(2);
  const int64_t kv_heads = positive(3);
  const int64_t q_heads = kv_heads * positive(3);
  const int64_t q_len = positive(150);
  const int64_t kv_len = positive(150);
  const int64_t dim = positive(100);
  const int64_t v_dim = positive(100);
  v1::AttentionRequest request;
  *request.mutable_query() = DataTensor({batch, q_heads, q_len, dim}, 3 * seed);
  *request.mutable_key() =
      DataTensor({batch, kv_heads, kv_len, dim}, 3 * seed + 1);
  *request.mutable_value() =
      DataTensor({batch, kv_heads, kv_len, v_dim}, 3 * seed + 2);
  const int causal = static_cast<int>(rng() % 3);
  request.mutable_options()->set_causal(v1::Causal(causal));
  const auto problem =
      AttentionProblem::Create({.shape = {batch, q_heads, q_len, dim}},
                               {.shape = {batch, kv_heads, kv_len, dim}},
                               {.shape = {batch, kv_heads, kv_len, v_dim}},
                               {.causal = static_cast<Causal>(causal)});
  LoadCase load;
  load.request = request.SerializeAsString();
  load.expected.resize(static_cast<size_t>(batch * q_heads * q_len * v_dim));
  std::vector<double> lse(static_cast<size_t>(batch * q_heads * q_len));
  ReferenceAttention(*problem,
                     {.query = request.query().data().data(),
                      .key = request.key().data().data(),
                      .value = request.value().data().data()},
                     load.expected.data(), lse.data());
  return load;
}

// Returns the bytes of the output. The call must succeed.
std::string Output(RawClient& client, const LoadCase& load) {
  const RawReply reply = client.Call(Method("Attention"), load.request);
  EXPECT_EQ(reply.code, 0) << reply.message;
  v1::AttentionResponse response;
  if (reply.responses.size() != 1 ||
      !response.ParseFromString(reply.responses[0])) {
    return {};
  }
  return response.output().data();
}

void ExpectClose(const std::string& output, const LoadCase& load) {
  const std::vector<float> got = Floats(output);
  ASSERT_EQ(got.size(), load.expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], load.expected[i], 1e-4);
  }
}

TEST(ServerLoadTest, SixtyFourClientsGetRightAnswersAndTheSameBitsAsAlone) {
  constexpr size_t kCases = 24;
  constexpr size_t kClients = 64;
  constexpr size_t kCallsEach = 6;
  std::vector<LoadCase> cases;
  cases.reserve(kCases);
  for (size_t i = 0; i < kCases; ++i) cases.push_back(MakeCase(i));
  {
    ServerConfig config = TestConfig();
    config.threads = 1;
    const auto server = StartServer(config);
    RawClient client(server->addresses()[0]);
    for (LoadCase& load : cases) {
      load.alone = Output(client, load);
      ExpectClose(load.alone, load);
    }
  }
  ServerConfig config = TestConfig();
  config.threads = 3;
  const auto server = StartServer(config);
  std::atomic<size_t> same = 0;
  std::vector<std::thread> clients;
  clients.reserve(kClients);
  for (size_t c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      RawClient client(server->addresses()[c % 2]);
      for (size_t i = 0; i < kCallsEach; ++i) {
        const LoadCase& load = cases[(c * 7 + i * 5) % kCases];
        if (Output(client, load) == load.alone) ++same;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(same, kClients * kCallsEach);
}

}  // namespace
}  // namespace attnd::server
