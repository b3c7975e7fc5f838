// Compares what the client reads from an answer with what protobuf reads, over
// bytes that anybody may have sent. For tests of mutations and for the fuzzer.
#ifndef ATTND_TESTS_CLIENT_ANSWER_CHECK_H_
#define ATTND_TESTS_CLIENT_ANSWER_CHECK_H_

#include <cstddef>
#include <string>
#include <vector>

namespace attnd::client {

// The result of an answer to a call for 2 x 3 outputs and two lse.
struct AnswerCheck {
  bool accepted = false;  // the client accepts the answer
  bool good = false;      // protobuf parses it to a valid answer
  bool equal = false;     // both read the same elements
};

// The client reads in blocks of `block_bytes`.
AnswerCheck CheckReply(const std::string& text, size_t block_bytes);
// The messages of AttentionStream's answer.
AnswerCheck CheckStream(const std::vector<std::string>& messages,
                        size_t block_bytes);

// Returns the bytes of elements as they are sent.
std::string Bytes(const std::vector<float>& floats);

// Return valid answers.
std::string GoodReply();
std::vector<std::string> GoodStream();

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_ANSWER_CHECK_H_
