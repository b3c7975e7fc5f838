// Reads one error with the client library and with the generated code of
// google.rpc, and merges two parts.
#include <dlfcn.h>

#include <cstddef>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "client/attention_client.h"
#include "client/merge.h"

int main() {
  // The client library refuses this call by itself, so no server is needed.
  const std::vector<float> one(1, 1);
  std::vector<float> output(1);
  const absl::Status refusal =
      attnd::client::AttentionClient({.max_message_bytes = 16})
          .SelfAttention({one, {1, 1}}, {.output = output})
          .status();
  const std::string payload(refusal.GetPayload(attnd::client::kStatusPayloadUrl)
                                .value_or(absl::Cord()));
  const attnd::client::ErrorDetails details = attnd::client::DetailsOf(refusal);

  const std::vector<float> zero(1), three(1, 3);
  if (!attnd::client::MergeAttention({{{one, zero}, {three, zero}}}, {1, 1},
                                     {.output = output})
           .ok() ||
      output[0] != 2) {
    std::cerr << "the merge of 1 and 3 is " << output[0] << "\n";
    return 1;
  }

  // Protobuf ends the program here if the client library has google.rpc's code,
  // too.
  void* const googleapis = dlopen(GOOGLEAPIS, RTLD_NOW | RTLD_LOCAL);
  if (googleapis == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  const auto reason = reinterpret_cast<const char* (*)(const char*, size_t)>(
      dlsym(googleapis, "ReasonByGoogleapis"));
  const std::string read = reason(payload.data(), payload.size());
  std::cout << "by google.rpc's code: " << read << "\n";
  return read == "MESSAGE_TOO_LARGE (attnd.client)" &&
                 details.reason == "MESSAGE_TOO_LARGE" &&
                 details.domain == "attnd.client"
             ? 0
             : 1;
}
