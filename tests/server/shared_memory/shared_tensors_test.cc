// Tests which parts of regions a request can name.
#include "server/shared_memory/shared_tensors.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>

#include "server/codec/message_parser.h"
#include "server/memory/admission.h"
#include "tests/server/memfd.h"
#include "tests/server/message_tools.h"

namespace attnd::server {
namespace {

using R = v1::AttentionRequest;

constexpr int64_t kRegionBytes = 16 * 4096;

class SharedTensorsTest : public ::testing::Test {
 protected:
  SharedTensorsTest()
      : region_(*registry_.Register(MakeMemfd(kRegionBytes), 1)),
        other_(*registry_.Register(MakeMemfd(kRegionBytes), 1)),
        read_only_(*registry_.Register(
            MakeMemfd(kRegionBytes, kNeededSeals | F_SEAL_WRITE), 1)) {}

  static void Place(v1::SharedMemory* place, const SharedRegion& region,
                    int64_t offset_bytes) {
    place->set_handle(region.handle());
    place->set_offset_bytes(offset_bytes);
  }

  // Places the tensors of GoodAttention: query (1280 bytes), key (896 bytes),
  // value (336 bytes), output (480 bytes) and lse (160 bytes).
  R Good() const {
    R request = GoodAttention();
    Place(request.mutable_query()->mutable_shared_memory(), *region_, 0);
    Place(request.mutable_key()->mutable_shared_memory(), *region_, 1280);
    Place(request.mutable_value()->mutable_shared_memory(), *other_, 0);
    v1::AttentionOptions& options = *request.mutable_options();
    options.set_return_lse(true);
    Place(options.mutable_output_region(), *region_, 4096);
    Place(options.mutable_lse_region(), *region_, kRegionBytes - 192);
    return request;
  }

  static absl::StatusOr<SharedTensors> Find(const R& request,
                                            const RegionRegistry* registry) {
    const ReceivedMessage received =
        InSlices(request.SerializeAsString(), 1000, 1);
    Admission admission(1LL << 40, 1);
    Admission::Reservation reservation = *admission.Admit(0);
    R header;
    const auto split = ParseMessage(received, reservation, header);
    if (!split.ok()) return split.status();
    const AttentionTensors tensors = AttentionTensors::Of(header);
    const auto decoded = DecodeRequest(tensors, *split);
    if (!decoded.ok()) return decoded.status();
    return FindSharedTensors(tensors, *decoded, registry);
  }

  RegionRegistry registry_{100 * kRegionBytes};
  const std::shared_ptr<const SharedRegion> region_;
  const std::shared_ptr<const SharedRegion> other_;
  const std::shared_ptr<const SharedRegion> read_only_;
};

TEST_F(SharedTensorsTest, FindsEveryPart) {
  const auto shared = Find(Good(), &registry_);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(shared->inputs[kQuery].data(), region_->data());
  EXPECT_EQ(shared->inputs[kKey].data(), region_->data() + 1280);
  EXPECT_EQ(shared->inputs[kValue].data(), other_->data());
  EXPECT_EQ(shared->inputs[kBias].region, nullptr);
  EXPECT_EQ(shared->output.writable_data(), region_->writable_data() + 4096);
  EXPECT_EQ(shared->lse.size_bytes, 160);
}

TEST_F(SharedTensorsTest, TensorsMayTravelEachItsOwnWay) {
  R request = GoodAttention();
  Place(request.mutable_value()->mutable_shared_memory(), *read_only_, 0);
  const auto shared = Find(request, &registry_);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(shared->inputs[kQuery].region, nullptr);
  EXPECT_EQ(shared->inputs[kValue].region, read_only_);
  EXPECT_EQ(shared->output.region, nullptr);
}

TEST_F(SharedTensorsTest, RefusesByName) {
  struct Case {
    std::string field;
    std::string reason;
    std::function<void(R&)> spoil;
  };
  const std::string invalid = "INVALID_FIELD";
  constexpr int64_t kFarthest = INT64_MAX - 63;
  const Case cases[] = {
      {"key.shared_memory.handle", "UNKNOWN_REGION",
       [](R& r) {
         r.mutable_key()->mutable_shared_memory()->mutable_handle()->back() ^=
             1;
       }},
      {"options.output_region.handle", "UNKNOWN_REGION",
       [](R& r) {
         r.mutable_options()->mutable_output_region()->set_handle(
             std::string(16, '\0'));
       }},
      {"query.shared_memory.offset_bytes", invalid,
       [](R& r) {
         r.mutable_query()->mutable_shared_memory()->set_offset_bytes(
             kRegionBytes - 1216);
       }},
      {"query.shared_memory.offset_bytes", invalid,
       [](R& r) {
         r.mutable_query()->mutable_shared_memory()->set_offset_bytes(
             kFarthest);
       }},
      {"options.lse_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_lse_region()->set_offset_bytes(
             kRegionBytes - 128);
       }},
      {"options.output_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_output_region()->set_offset_bytes(
             kFarthest);
       }},
      // These tensors are larger than the region, wherever they start.
      {"value.shared_memory.offset_bytes", invalid,
       [](R& r) {
         r.mutable_key()->set_shape(2, 4000);
         r.mutable_key()->set_data(std::string(2LL * 2 * 4000 * 8 * 4, '\0'));
         r.mutable_value()->set_shape(2, 4000);
       }},
      {"options.output_region.handle", invalid,
       [this](R& r) {
         r.mutable_options()->mutable_output_region()->set_handle(
             read_only_->handle());
       }},
      // A tensor that is written must not overlap a tensor that is read, or
      // another one that is written.
      {"options.output_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_output_region()->set_offset_bytes(
             1280 + 896 - 64 - 448);
       }},
      {"options.output_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_output_region()->set_offset_bytes(0);
       }},
      {"options.lse_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_lse_region()->set_offset_bytes(4096 +
                                                                     448);
       }},
      {"options.lse_region.offset_bytes", invalid,
       [](R& r) {
         r.mutable_options()->mutable_lse_region()->set_offset_bytes(1216);
       }},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.field);
    R request = Good();
    test.spoil(request);
    const Refusal refusal = RefusalOf(Find(request, &registry_).status());
    EXPECT_EQ(refusal.field, test.field) << refusal.message;
    EXPECT_EQ(refusal.reason, test.reason) << refusal.message;
  }
}

TEST_F(SharedTensorsTest, SaysThatItIsOff) {
  const Refusal refusal = RefusalOf(Find(Good(), nullptr).status());
  EXPECT_EQ(refusal.code,
            static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(refusal.field, "query.shared_memory");
  EXPECT_EQ(refusal.reason, "SHARED_MEMORY_OFF");
}

}  // namespace
}  // namespace attnd::server
