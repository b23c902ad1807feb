// What Rust cannot say through tch: an autograd function with a backward of its own, what a tensor looks like
// in memory in one call, and a tensor over memory of ours. A C interface for src/tch/torch.rs.
//
// Pointers to tensors are those of tch: at::Tensor*, owned by whoever gets them unless it says const.
// No exception leaves: a function that fails returns false, and leaves its reason to lr_relax_error.

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/headeronly/version.h>
#include <ATen/ops/from_blob.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#define LR_RELAX_TEXT(x) #x
#define LR_RELAX_STRING(x) LR_RELAX_TEXT(x)
#define LR_RELAX_RELEASE         \
  LR_RELAX_STRING(TORCH_VERSION_MAJOR) \
  "." LR_RELAX_STRING(TORCH_VERSION_MINOR) "." LR_RELAX_STRING(TORCH_VERSION_PATCH)

thread_local std::string error;

template <typename F>
bool guarded(F&& body) noexcept {
  try {
    body();
    return true;
  } catch (const c10::Error& e) {
    error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    error = e.what();
  } catch (...) {
    error = "unknown error";
  }
  return false;
}

// The Rust side of a function: how to compute the gradient from what was saved.
struct Closure : torch::CustomClassHolder {
  using Backward = bool(const void* context, Tensor** saved, size_t n_saved, const Tensor* upstream,
                        bool create_graph, bool keep_graph, Tensor** gradient);
  void* context;
  Backward* call;
  void (*drop)(void*);

  Closure(void* context, Backward* call, void (*drop)(void*)) : context(context), call(call), drop(drop) {}
  Closure(const Closure&) = delete;
  ~Closure() override { drop(context); }
};

// The loss of an input, both computed already; its gradient is the closure's to tell.
struct Precomputed : torch::autograd::Function<Precomputed> {
  static Tensor forward(AutogradContext* ctx, const Tensor& /*input*/, const Tensor* loss,
                        const variable_list* saved, const c10::intrusive_ptr<Closure>* closure) {
    ctx->save_for_backward(*saved);
    ctx->saved_data["closure"] = c10::IValue::make_capsule(*closure);
    return *loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    // Unpacking checks that no saved tensor was changed in the meantime.
    variable_list saved = ctx->get_saved_variables();
    auto capsule = ctx->saved_data["closure"].toCapsule();
    const auto* closure = static_cast<const Closure*>(capsule.get());
    std::vector<Tensor*> owned;
    for (auto& tensor : saved) {
      owned.push_back(new Tensor(std::move(tensor)));
    }
    Tensor* gradient = nullptr;
    bool done = closure->call(closure->context, owned.data(), owned.size(), &upstream[0],
                              c10::GradMode::is_enabled(),
                              torch::autograd::get_current_graph_task_keep_graph(), &gradient);
    TORCH_CHECK(done, error);
    std::unique_ptr<Tensor> result(gradient);
    return {std::move(*result), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// Found in the file of an extension, before that is loaded: lr_relax/_torch_release.py.
__attribute__((used)) extern const char lr_relax_built_for[] = "lr_relax is built for torch " LR_RELAX_RELEASE;

const char* lr_relax_error() { return error.c_str(); }

void lr_relax_set_error(const char* text, size_t length) {
  guarded([&] { error.assign(text, length); });
}

struct LrRelaxView {
  const void* data;
  const int64_t* sizes;
  const int64_t* strides;
  size_t dim;
  int32_t scalar_type;
  int32_t device_type;
  int32_t device_index;
  // Whether the numbers are what lies in memory: dense, with storage, not lazily negated or conjugated.
  bool is_plain;
};

bool lr_relax_view(const Tensor* tensor, LrRelaxView* out) {
  return guarded([&] {
    const Tensor& t = *tensor;
    TORCH_CHECK(t.defined(), "it is undefined");
    TORCH_CHECK(t.layout() == at::kStrided && !t.is_nested(), "its layout is not strided");
    TORCH_CHECK(!t.is_quantized(), "it is quantized");
    auto sizes = t.sizes();
    auto strides = t.strides();
    bool is_plain = !t.is_neg() && !t.is_conj() && !t._is_zerotensor() && t.has_storage();
    const void* data = t.is_cpu() && is_plain ? t.const_data_ptr() : nullptr;
    *out = {data,
            sizes.data(),
            strides.data(),
            sizes.size(),
            static_cast<int32_t>(t.scalar_type()),
            static_cast<int32_t>(t.device().type()),
            t.device().index(),
            is_plain};
  });
}

// A contiguous CPU tensor over memory of the owner, who is dropped with it, on whatever thread; also if it fails.
bool lr_relax_from_blob(void* data, const int64_t* sizes, size_t dim, int32_t scalar_type, void* owner,
                        void (*drop)(void*), Tensor** out) {
  std::unique_ptr<void, void (*)(void*)> owned(owner, drop);
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type));
    auto keep = [block = std::shared_ptr<void>(owned.release(), drop)](void*) {};
    *out = new Tensor(at::from_blob(data, at::IntArrayRef(sizes, dim), std::move(keep), options));
  });
}

bool lr_relax_needs_grad(const Tensor* tensor) {
  return c10::GradMode::is_enabled() && tensor->requires_grad();
}

bool lr_relax_attach(const Tensor* loss, const Tensor* input, const Tensor* const* saved, size_t n_saved,
                     void* context, Closure::Backward* call, void (*drop)(void*), Tensor** out) {
  std::unique_ptr<void, void (*)(void*)> owned(context, drop);
  return guarded([&] {
    auto closure = c10::make_intrusive<Closure>(context, call, drop);
    owned.release();
    variable_list tensors;
    for (size_t i = 0; i < n_saved; ++i) {
      tensors.push_back(saved[i] == nullptr ? Tensor() : *saved[i]);
    }
    *out = new Tensor(Precomputed::apply(*input, loss, &tensors, &closure));
  });
}

// The gradient of `loss` with respect to `input`, times `upstream`, with a graph of its own.
bool lr_relax_gradient(const Tensor* loss, const Tensor* input, const Tensor* upstream, Tensor** out) {
  return guarded([&] {
    auto gradients = torch::autograd::grad({*loss}, {*input}, {*upstream}, /*retain_graph=*/true, /*create_graph=*/true);
    *out = new Tensor(std::move(gradients[0]));
  });
}

}  // extern "C"
