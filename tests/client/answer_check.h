// Compares what the client reads from an answer with what protobuf reads, over
// bytes that anybody may have sent. For tests of mutations and for the fuzzer.
#ifndef ATTND_TESTS_CLIENT_ANSWER_CHECK_H_
#define ATTND_TESTS_CLIENT_ANSWER_CHECK_H_

#include <cstddef>
#include <string>
#include <vector>

namespace attnd::client {

// What became of an answer to a call for five outputs and two lse.
struct AnswerCheck {
  bool accepted = false;  // by the client
  bool good = false;      // by what protobuf makes of it
  bool equal = false;     // where both: the elements
};

// The client reads in blocks of `block_bytes`.
AnswerCheck CheckReply(const std::string& text, size_t block_bytes);
// The messages of AttentionStream's answer.
AnswerCheck CheckStream(const std::vector<std::string>& messages,
                        size_t block_bytes);

// Elements as they travel.
std::string Bytes(const std::vector<float>& floats);

// Answers that are good.
std::string GoodReply();
std::vector<std::string> GoodStream();

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_ANSWER_CHECK_H_
