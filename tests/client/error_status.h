// The details that a server's refusal carries, as bytes, and what protobuf's
// own code reads from such bytes. Apart from the tests, because
// google.rpc.ErrorInfo must not be instrumented; see cmake/attnd_target.cmake.
#ifndef ATTND_TESTS_CLIENT_ERROR_STATUS_H_
#define ATTND_TESTS_CLIENT_ERROR_STATUS_H_

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "client/error_details.h"

namespace attnd::client {

// A serialized google.rpc.Status with ErrorInfo (domain "attnd"), one field
// violation where `field` is not empty, and RetryInfo where there is a delay.
std::string SerializedRefusal(
    const std::string& reason, const std::string& field,
    const std::string& description,
    std::optional<absl::Duration> retry_delay = std::nullopt);

// Nothing where `bytes` are no google.rpc.Status whose details all parse.
std::optional<ErrorDetails> DetailsByProtobuf(const std::string& bytes);

// The code and message of a google.rpc.Status, as "3: message".
std::string StatusByProtobuf(const std::string& bytes);

}  // namespace attnd::client

#endif  // ATTND_TESTS_CLIENT_ERROR_STATUS_H_
