// Computes attention on tensors that are too large for a message. The client
// sends them in chunks automatically. To show this with small tensors, its
// messages are limited to 1 MiB.
//
//     attnd_streaming (HOST:PORT | unix:PATH)
#include <cmath>
#include <cstdint>
#include <iostream>
#include <span>
#include <stdexcept>
#include <vector>

#include "client/attention_client.h"

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("expected ADDRESS");
  const attnd::client::AttentionClient client(
      {.target = argv[1], .max_message_bytes = int64_t{1} << 20});

  // Equal keys have equal weights, so the answer is any of the equal values.
  constexpr int64_t kKeys = 100'000, kDim = 64;
  const std::vector<float> kv(kKeys * kDim, 1);
  std::vector<float> output(kDim);
  const auto reply =
      client.Attention({.query = {std::span(kv).first(kDim), {1, kDim}},
                        .key = {kv, {kKeys, kDim}},
                        .value = {kv, {kKeys, kDim}}},
                       {.output = output});
  if (!reply.ok()) throw std::runtime_error(reply.status().ToString());
  for (const float element : output) {
    if (std::abs(element - 1) > 1e-5) throw std::runtime_error("not 1");
  }
  std::cout << "streamed      " << (2 * kv.size() * sizeof(float) >> 20)
            << " MiB in chunks\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
