"""Any model litellm knows, behind the same door as an OpenAI-compatible URL.

litellm takes hosts, keys, callbacks, mocks and prices from the same keyword arguments as `temperature`, so a request
body is never handed to it as it came: a listed set of OpenAI's parameters passes, a name outside the list is a 400
that names it, and so is anything in a message that litellm would fetch. The model's name is looked up in the
operator's map; host and keys come from the operator's `params` and environment alone. What the provider says went
wrong may quote the prompt, so of its errors only status, type and code are kept.

litellm takes seconds to import and reads the environment as it does, so it is loaded on first use, off the loop.
A third of this room is the list of names; the rest is one class and the reading of what may pass.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from guardrail.conversation import JSON
from guardrail.errors import BadRequest, ConfigError, NotFound, UpstreamError, UpstreamRejected, UpstreamTimeout
from guardrail.upstream import Timeouts, UpstreamResponse

# openai-openapi, `CreateChatCompletionRequest`. Left out: `audio` (its answer could not be scored) and
# `web_search_options` (litellm moves such a call to another endpoint). `store` is read and always sent as false.
PARAMETERS: Final = frozenset(
    {
        *("messages", "model", "n", "stream", "stream_options", "stop", "max_tokens", "max_completion_tokens"),
        *("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "reasoning_effort", "verbosity", "modalities", "prediction", "service_tier", "user"),
        *("safety_identifier", "prompt_cache_key", "store", "metadata"),
    }
)
# Read, checked and not handed on: see `_check_metadata` and `_supported`.
_KEPT_BACK = frozenset({"model", "store", "metadata", "stream"})
_MESSAGE = frozenset(
    {
        *("role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call", "audio"),
        *("annotations", "reasoning_content", "reasoning", "thinking_blocks", "cache_control"),
    }
)
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]*")
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# The names litellm's own proxy refuses in a request body (auth_utils.py, litellm 1.106), prices apart.
_BANNED = frozenset(
    """
    agentcore_runtime_session_id anthropic-workspace-id anthropic_disable_workload_identity_federation
    anthropic_federation_rule_id anthropic_federation_workspace_id anthropic_identity_source
    anthropic_identity_token anthropic_identity_token_file anthropic_issuer_audience
    anthropic_issuer_signing_key_ref anthropic_issuer_subject anthropic_issuer_ttl_seconds
    anthropic_issuer_url anthropic_keycloak_auth_method anthropic_keycloak_client_id
    anthropic_keycloak_client_secret_ref anthropic_keycloak_scope anthropic_keycloak_token_url
    anthropic_organization_id anthropic_service_account_id anthropic_workspace_id api_base arize_api_key
    arize_error_sampling_rate arize_space_id arize_space_key arize_success_sampling_rate
    aws_bedrock_project_id aws_bedrock_runtime_endpoint aws_external_id aws_profile_name aws_role_name
    aws_session_name aws_session_tags aws_sts_endpoint aws_web_identity_token aws_workspace_id azure_ad_token
    base_url bedrock_tags braintrust_api_key braintrust_host braintrust_project dd_agent_host dd_agent_port
    dd_api_key dd_site deployment_url fireworks_forward_user_id gcs_bucket_name gcs_path_service_account
    humanloop_api_key langfuse_environment langfuse_host langfuse_public_key langfuse_secret
    langfuse_secret_key langsmith_api_key langsmith_base_url langsmith_project langsmith_tenant_id
    lunary_public_key model_list newrelic_api_key newrelic_region nvcf_function_id openai_identity_provider_id
    openai_identity_token_file openai_service_account_id posthog_api_key posthog_api_url posthog_host rust
    s3_endpoint_url sagemaker_base_url signoz_ingestion_endpoint signoz_ingestion_key slack_webhook_url
    turn_off_message_logging use_ssl user_api_key_auth_metadata user_config vertex_ai_credentials
    vertex_credentials wandb_api_key weave_project_id workspace_id
    """.split()  # noqa: SIM905 - quoted, the list would fill three hundred lines
)
# The prices it refuses: with them a caller rewrites what its own calls cost.
_PRICES = frozenset(
    """
    annotation_cost_per_page annotation_cost_per_page_batches cache_creation_input_audio_token_cost
    cache_creation_input_token_cost cache_creation_input_token_cost_above_100k_tokens
    cache_creation_input_token_cost_above_100k_tokens_batches cache_creation_input_token_cost_above_1hr
    cache_creation_input_token_cost_above_1hr_above_100k_tokens
    cache_creation_input_token_cost_above_200k_tokens
    cache_creation_input_token_cost_above_200k_tokens_batches
    cache_creation_input_token_cost_above_272k_tokens
    cache_creation_input_token_cost_above_272k_tokens_batches
    cache_creation_input_token_cost_above_272k_tokens_flex
    cache_creation_input_token_cost_above_272k_tokens_priority
    cache_creation_input_token_cost_above_272k_tokens_ultrafast cache_creation_input_token_cost_batches
    cache_creation_input_token_cost_flex cache_creation_input_token_cost_priority
    cache_creation_input_token_cost_ultrafast cache_read_input_audio_token_cost
    cache_read_input_image_token_cost cache_read_input_token_cost
    cache_read_input_token_cost_above_100k_tokens cache_read_input_token_cost_above_100k_tokens_batches
    cache_read_input_token_cost_above_200k_tokens cache_read_input_token_cost_above_200k_tokens_batches
    cache_read_input_token_cost_above_200k_tokens_priority cache_read_input_token_cost_above_272k_tokens
    cache_read_input_token_cost_above_272k_tokens_batches cache_read_input_token_cost_above_272k_tokens_flex
    cache_read_input_token_cost_above_272k_tokens_priority
    cache_read_input_token_cost_above_272k_tokens_ultrafast cache_read_input_token_cost_above_512k_tokens
    cache_read_input_token_cost_balanced cache_read_input_token_cost_batches cache_read_input_token_cost_flex
    cache_read_input_token_cost_priority cache_read_input_token_cost_ultrafast citation_cost_per_token
    cost_per_second google_maps_grounding_cost_per_query input_cost_per_audio_per_second
    input_cost_per_audio_per_second_above_128k_tokens input_cost_per_audio_token
    input_cost_per_audio_token_batches input_cost_per_character input_cost_per_character_above_128k_tokens
    input_cost_per_image input_cost_per_image_above_128k_tokens input_cost_per_image_token
    input_cost_per_image_token_batches input_cost_per_pixel input_cost_per_query input_cost_per_second
    input_cost_per_token input_cost_per_token_above_100k_tokens input_cost_per_token_above_100k_tokens_batches
    input_cost_per_token_above_128k_tokens input_cost_per_token_above_200k_tokens
    input_cost_per_token_above_200k_tokens_batches input_cost_per_token_above_200k_tokens_priority
    input_cost_per_token_above_272k_tokens input_cost_per_token_above_272k_tokens_batches
    input_cost_per_token_above_272k_tokens_flex input_cost_per_token_above_272k_tokens_priority
    input_cost_per_token_above_272k_tokens_ultrafast input_cost_per_token_above_512k_tokens
    input_cost_per_token_balanced input_cost_per_token_batches input_cost_per_token_cache_hit
    input_cost_per_token_flex input_cost_per_token_priority input_cost_per_token_ultrafast
    input_cost_per_video_per_second input_cost_per_video_per_second_above_128k_tokens
    input_cost_per_video_per_second_above_15s_interval input_cost_per_video_per_second_above_8s_interval
    input_cost_per_video_token input_cost_per_video_token_batches ocr_cost_per_credit ocr_cost_per_page
    ocr_cost_per_page_batches output_cost_per_audio_per_second output_cost_per_audio_token
    output_cost_per_character output_cost_per_character_above_128k_tokens output_cost_per_image
    output_cost_per_image_1024 output_cost_per_image_1536 output_cost_per_image_512
    output_cost_per_image_token output_cost_per_image_token_batches output_cost_per_pixel
    output_cost_per_reasoning_token output_cost_per_reasoning_token_flex
    output_cost_per_reasoning_token_priority output_cost_per_second output_cost_per_second_1080p
    output_cost_per_second_2k output_cost_per_second_480p output_cost_per_second_4k
    output_cost_per_second_720p output_cost_per_second_768p output_cost_per_token
    output_cost_per_token_above_100k_tokens output_cost_per_token_above_100k_tokens_batches
    output_cost_per_token_above_128k_tokens output_cost_per_token_above_200k_tokens
    output_cost_per_token_above_200k_tokens_batches output_cost_per_token_above_200k_tokens_priority
    output_cost_per_token_above_272k_tokens output_cost_per_token_above_272k_tokens_batches
    output_cost_per_token_above_272k_tokens_flex output_cost_per_token_above_272k_tokens_priority
    output_cost_per_token_above_272k_tokens_ultrafast output_cost_per_token_above_512k_tokens
    output_cost_per_token_balanced output_cost_per_token_batches output_cost_per_token_flex
    output_cost_per_token_priority output_cost_per_token_ultrafast output_cost_per_video_per_second
    output_cost_per_video_token output_vector_size regional_endpoint_uplift_multiplier
    regional_processing_uplift_multiplier_eu regional_processing_uplift_multiplier_us
    search_context_cost_per_query tiered_pricing
    """.split()  # noqa: SIM905
)
# More names that say where a call goes and whose keys it uses, from litellm's arguments and its providers'.
_CONNECTION = frozenset(
    """
    _litellm_addressed_response_id _litellm_internal_model_credentials _litellm_strip_stream_usage account_id
    adaptive_router_config adaptive_router_default_model allowed_model_region anthropic_version api_key
    api_version apikey auto_router_config auto_router_config_path auto_router_default_model
    auto_router_embedding_model auto_router_max_input_chars auto_router_model_compression
    auto_router_routing_compression aws_access_key_id aws_batch_role_arn aws_bedrock_client aws_region
    aws_region_name aws_role_arn aws_sagemaker_allow_zero_temp aws_secret_access_key aws_session_token
    azure_ad_token_provider azure_api_key azure_deployment azure_endpoint azure_password azure_scope
    azure_username base_model bucket_name callback callbacks cert client client_id client_secret
    complexity_router_config complexity_router_default_model config configurable_clientside_auth_params
    container content_policy_fallbacks context_window_fallback_dict context_window_fallbacks custom_endpoint
    custom_llm_provider data_residency databricks_user_agent default_headers default_query deployment_id
    engine extra_body extra_headers extra_query failure_callback fallbacks follow_redirects gemini_api_key
    gigachat_access_token gigachat_auth_url gigachat_scope guardrailConfig guardrailIdentifier
    guardrailVersion headers http_client input_callback langfuse_trace_id litellm_call_id
    litellm_credential_name litellm_disabled_callbacks litellm_embedding_config litellm_embedding_model
    litellm_logging_obj litellm_metadata litellm_params litellm_request_debug litellm_router
    litellm_session_id litellm_system_prompt litellm_trace_id litellm_trusted_callback_vars logger_fn
    mcp_servers milvus_db_name milvus_partition_names milvus_text_field model_alias_map model_config
    mongodb_connection_string oci_compartment_id oci_endpoint_id oci_fingerprint oci_key oci_key_file
    oci_region oci_serving_mode oci_signer oci_tenancy oci_user openai_api_base openai_api_key
    openai_organization organization predibase_tenant_id project_id provider_affinity_header
    provider_specific_header proxies proxy proxy_server_request quality_router_config
    quality_router_default_model region_name router_settings_override s3_access_key_id s3_bucket_name
    s3_bucket_owner s3_encryption_key_id s3_output_bucket_name s3_region_name s3_secret_access_key
    sagemaker_runtime_client search_tool_name secret_fields shared_session silent_model space_id
    ssl_certificate ssl_verify success_callback tenant_id token transport use_litellm_proxy
    use_psc_endpoint_format use_xai_oauth user_agent valkey_embedding_field valkey_host valkey_password
    valkey_port valkey_ssl valkey_text_field vector_store_id verify vertex_ai_location vertex_ai_project
    vertex_api_base vertex_collection_id vertex_count_tokens_location vertex_engine_id vertex_location
    vertex_project watsonx_credentials watsonx_project watsonx_region_name webhook_url zen_api_key
    """.split()  # noqa: SIM905
)
# And names that say how litellm runs a call: caches, mocks, retries, prompts, its own bookkeeping.
_RUNNING = frozenset(
    """
    _agentic_loop_api_surface _agentic_loop_depth _agentic_loop_fingerprints
    _code_interpreter_interception_active _code_interpreter_interception_converted_stream
    _code_interpreter_interception_sandbox_key _code_interpreter_interception_session_scoped
    _context_compaction_state _headroom_interception_converted_stream _is_litellm_internal_call
    _router_weights _skip_mcp_handler _skip_responses_api_bridge _websearch_interception_converted_stream
    _websearch_interception_emit_native_blocks acompletion additional_drop_params aembedding aimg_generation
    allm_passthrough_route allow_client_keepalive_override allowed_openai_params amoderation arerank
    aresponses arize_otlp_protocol assistant_continue_message async_call atext_completion atranscription
    attempted_targets audio azure bos_token budget_duration cache cache_key cached_content caching
    caching_groups client_side_timeout complete_response completion_call_id context_management cooldown_time
    cost_per_query custom_prompt_dict default_api_key_rpm_limit default_api_key_tpm_limit
    disable_add_transform_inline_image_block drop_params enable_json_schema_validation enable_prompt_caching
    enable_tag_filtering ensure_alternating_roles eos_token fake_stream fallback_depth fastest_response
    final_prompt_value force_timeout gdc_token_caching guardrails headroom hf_model_name id
    include_server_side_tool_invocations initial_prompt_value itpm keepalive_seconds langfuse_prompt_version
    langfuse_span_scope langsmith_sampling_rate log_client_error_tracebacks max_agentic_loops max_budget
    max_fallbacks max_file_size_mb max_parallel_requests max_retries merge_reasoning_content_in_choices
    mock_delay mock_response mock_timeout mock_tool_calls mode model_file_id_mapping model_info no-log
    num_retries order original_function otpm passthrough placeholder_values preset_cache_key project
    prompt_environment prompt_id prompt_integration prompt_label prompt_variables prompt_version
    providerOptions request_timeout retry_policy retry_strategy roles routing_strategy rpm self session_id
    stream_chunk_size stream_response stream_timeout stream_timeout_by_service_tier supports_system_message
    tag_regex tags text_completion thinking timeout timeout_by_service_tier tpm ttl use_chat_completions_api
    use_client use_in_pass_through user_continue_message verbose web_search_options weight
    """.split()  # noqa: SIM905
)
DANGEROUS: Final = _BANNED | _PRICES | _CONNECTION | _RUNNING


class LiteLLMUpstream:
    """`model` is served under its own name and its last path part, `models` maps further names to litellm's.

    `params` are the operator's own arguments for litellm (`api_base`, `api_key`, `drop_params` ...); no request
    reaches them. `allow_image_urls` lets litellm and the provider fetch images from http(s) addresses.
    """

    def __init__(
        self,
        model: str | None = None,
        models: Mapping[str, str] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        allow_image_urls: bool = False,
    ) -> None:
        own = {model.rsplit("/", 1)[-1]: model, model: model} if model else {}
        self._models = {**own, **(models or {})}
        if not self._models or not all(name and target for name, target in self._models.items()):
            raise ConfigError("a litellm upstream needs the name of a model, as in litellm:openai/gpt-4o-mini")
        self._params = dict(params or {})
        self._timeouts = timeouts or Timeouts()
        self._allow_image_urls = allow_image_urls
        self._litellm: ModuleType | None = None

    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> UpstreamResponse:
        """Nothing of `headers` goes on: the caller's key is not the provider's."""
        if not body and path.startswith("/v1/models"):
            return _answer(self._list(path.removeprefix("/v1/models").lstrip("/")))
        if path != "/v1/chat/completions":
            raise NotFound(f"a litellm upstream does not serve {path!r}")
        sent = read_parameters(body, allow_image_urls=self._allow_image_urls)
        name = sent.get("model")
        if not isinstance(name, str):
            raise BadRequest("'model' must be a string", param="model")
        if name not in self._models:
            raise NotFound("the model does not exist", param="model", code="model_not_found")
        litellm = await self._load()
        stream = bool(sent.get("stream"))
        arguments = {
            **{field: value for field, value in sent.items() if field not in _KEPT_BACK},
            **({"stream": True} if stream else {}),
            **self._unstored(litellm, self._models[name]),
            "timeout": self._timeouts.read,
            "num_retries": 0,
            "max_retries": 0,
            # Else litellm looks for MCP servers among the tools, and fails where the `mcp` package is not installed.
            "_skip_mcp_handler": True,
            **self._params,
            "model": self._models[name],
        }
        try:
            async with asyncio.timeout(self._timeouts.total):
                answer = await litellm.acompletion(**arguments)
        except TimeoutError:
            raise UpstreamTimeout("the upstream did not answer in time") from None
        except Exception as error:
            raise self._read_error(litellm, error, arguments) from None
        if stream:
            return UpstreamResponse(200, {"content-type": "text/event-stream"}, self._frames(answer, name))
        return _answer(_write_response(answer, name))

    async def _load(self) -> ModuleType:
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(import_litellm)
        return self._litellm

    def _list(self, name: str) -> JSON:
        listed = [{"id": known, "object": "model", "created": 0, "owned_by": "guardrail"} for known in self._models]
        if not name:
            return {"object": "list", "data": listed}
        if name not in self._models:
            raise NotFound("the model does not exist", param="model", code="model_not_found")
        return next(model for model in listed if model["id"] == name)

    def _unstored(self, litellm: ModuleType, model: str) -> JSON:
        """`store: false`, said aloud where the provider knows the word: some store unless told not to."""
        return {"store": False} if "store" in self._supported(litellm, model) else {}

    def _supported(self, litellm: ModuleType, model: str) -> frozenset[str]:
        provider = self._params.get("custom_llm_provider")
        try:
            return frozenset(litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ())
        except Exception:
            # An unknown provider: the call itself says so, in the words of `_read_error`.
            return frozenset()

    async def _frames(self, answer: Any, name: str) -> AsyncGenerator[bytes, None]:
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeouts.total
        chunks: AsyncIterator[Any] = aiter(answer)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(min(deadline, now() + self._timeouts.read)):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    raise UpstreamTimeout("the upstream stopped sending") from None
                except Exception as error:
                    # The status line is out, so whatever the provider's status was, the stream breaks off.
                    kind = UpstreamTimeout if _is_timeout(error) else UpstreamError
                    raise kind(f"the upstream broke off ({type(error).__name__})") from None
                if chunk is None:
                    break
                yield b"data: " + _write_json(_write_chunk(chunk, name)) + b"\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            await answer.aclose()

    def _read_error(self, litellm: ModuleType, error: Exception, arguments: JSON) -> UpstreamError:
        """Status, type and code of a provider's error; never its message, which may quote the prompt."""
        kind = type(error).__name__
        if _is_timeout(error):
            return UpstreamTimeout("the upstream did not answer in time")
        status = getattr(error, "status_code", None)
        unreachable = kind in ("APIConnectionError", "APIResponseValidationError")
        if unreachable or not isinstance(status, int) or not 400 <= status <= 599:
            return UpstreamError(f"the upstream could not be reached ({kind})")
        param = None
        if kind == "UnsupportedParamsError":
            supported = self._supported(litellm, arguments["model"])
            param = next((name for name in arguments if name in PARAMETERS - supported - {"messages", "model"}), None)
        told = getattr(error, "body", None)
        told = told if isinstance(told, dict) else {}
        refusal = {
            "message": f"the upstream model refused the request ({kind})",
            "type": _code(told.get("type")) or "upstream_error",
            "param": param,
            "code": _code(told.get("code")) or _CODES.get(kind),
        }
        headers = {"content-type": "application/json"}
        wait = (getattr(error, "litellm_response_headers", None) or {}).get("retry-after")
        if isinstance(wait, str) and _CODE.fullmatch(wait):
            headers["retry-after"] = wait
        return UpstreamRejected(status, headers, _write_json({"error": refusal}))

    async def aclose(self) -> None:
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()


# What a request may hold


def read_parameters(body: bytes, *, allow_image_urls: bool = False) -> JSON:
    """The parameters of a chat completion, nulls left out. Raises `BadRequest` naming the first field refused."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    for name in fields:
        _refuse(name, DANGEROUS, name)
        if name not in PARAMETERS:
            raise BadRequest(f"{_shown(name)!r} is not a parameter this upstream takes", param=_shown(name))
    _check_metadata(fields.get("metadata"))
    for at, tool in enumerate(_objects(fields.get("tools"), "tools")):
        # litellm connects to a tool of type `mcp` itself, and runs searches and code for others.
        if tool.get("type") not in ("function", "custom"):
            raise BadRequest("only tools of type function and custom are taken", param=f"tools[{at}].type")
    messages = [*_objects(fields.get("messages"), "messages")]
    for at, message in enumerate(messages):
        _check_message(message, f"messages[{at}]", allow_image_urls)
    sent = {name: value for name, value in fields.items() if value is not None}
    sent["messages"] = [{name: value for name, value in message.items() if _sent(name, value)} for message in messages]
    return sent


def _sent(name: str, value: Any) -> bool:
    return value is not None or name == "content"


def _check_metadata(metadata: Any) -> None:
    """Labels for stored completions. Checked, not sent: ours are not stored, and litellm reads settings from them."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise BadRequest("'metadata' must be an object", param="metadata")
    for name, value in metadata.items():
        _refuse(name, _BANNED | _PRICES | _CONNECTION, f"metadata.{name}")
        if not isinstance(value, str):
            raise BadRequest("the values of 'metadata' must be strings", param=f"metadata.{_shown(name)}")


def _refuse(name: str, names: frozenset[str], param: str) -> None:
    if name in names:
        raise BadRequest(f"{name!r} is the operator's to set, not a request's", param=param)


def _shown(name: str) -> str:
    """A field's name as an error may repeat it: names are short, and what is not one is text."""
    return name if _CODE.fullmatch(name) else "(unnamed)"


def _check_message(message: JSON, where: str, allow_image_urls: bool) -> None:
    for name, value in message.items():
        if name not in _MESSAGE and value is not None:
            raise BadRequest("messages have no such field here", param=f"{where}.{_shown(name)}")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    for at, part in enumerate(_objects(content, f"{where}.content")):
        _check_part(part, f"{where}.content[{at}]", allow_image_urls)


def _check_part(part: JSON, where: str, allow_image_urls: bool) -> None:
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    fields = inner if isinstance(inner, dict) else {}
    if kind in ("text", "refusal", "thinking", "redacted_thinking"):
        return
    if kind == "image_url":
        _check_url(fields.get("url") if fields else inner, f"{where}.image_url", allow_image_urls)
    elif kind == "input_audio":
        if not isinstance(fields.get("data"), str) or not _BASE64.fullmatch(fields["data"]):
            raise BadRequest("audio must be given as base64", param=f"{where}.input_audio")
    elif kind == "file":
        if fields.get("file_data") is not None:
            _check_url(fields["file_data"], f"{where}.file", False)
        if fields.get("file_id") is not None and not _ID.fullmatch(str(fields["file_id"])):
            raise BadRequest("a file's id must not be an address", param=f"{where}.file")
    else:
        raise BadRequest("content parts of this type are not taken", param=f"{where}.type")


def _check_url(url: Any, where: str, allow_http: bool) -> None:
    if isinstance(url, str) and url[:5].lower() == "data:":
        return
    if allow_http and isinstance(url, str) and url[:8].lower().startswith(("https://", "http://")):
        return
    raise BadRequest("only data: URLs are taken here; addresses would be fetched from this host", param=where)


def _objects(value: Any, where: str) -> Iterator[JSON]:
    if value is None:
        return
    if not isinstance(value, list):
        raise BadRequest(f"{where!r} must be an array", param=where)
    for at, item in enumerate(value):
        if not isinstance(item, dict):
            raise BadRequest("each entry must be an object", param=f"{where}[{at}]")
        yield item


# What comes back

_CODES = {"ContextWindowExceededError": "context_length_exceeded", "ContentPolicyViolationError": "content_policy"}


def _answer(body: JSON) -> UpstreamResponse:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield _write_json(body)

    return UpstreamResponse(200, {"content-type": "application/json"}, whole())


def _write_response(answer: Any, name: str) -> JSON:
    body = _dump(answer, name)
    for choice in body.get("choices", ()):
        # Clients read these two whether or not there is anything in them.
        message = choice.setdefault("message", {})
        message.setdefault("content", None)
        choice.setdefault("finish_reason", None)
    return body


def _write_chunk(chunk: Any, name: str) -> JSON:
    body = _dump(chunk, name)
    for choice in body.get("choices", ()):
        choice.setdefault("delta", {})
        choice.setdefault("finish_reason", None)
    return body


def _dump(answer: Any, name: str) -> JSON:
    """As litellm's own proxy writes it, less `provider_specific_fields`: the answer again, in litellm's shapes."""
    body: JSON = answer.model_dump(exclude_none=True, exclude_unset=True)
    body["model"] = name
    for choice in body.get("choices", ()):
        for holder in (choice, choice.get("message"), choice.get("delta")):
            if isinstance(holder, dict):
                holder.pop("provider_specific_fields", None)
    return body


def _write_json(body: JSON) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")


def _code(value: Any) -> str | None:
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def _is_timeout(error: BaseException) -> bool:
    """Whether a timeout lies at the bottom: litellm wraps one as its own, or mid-stream as a lost connection."""
    seen: list[BaseException] = []
    below: BaseException | None = error
    while below is not None and below not in seen and len(seen) < 10:
        # Named, not imported: litellm's `Timeout` is an openai `APITimeoutError`.
        if isinstance(below, TimeoutError) or any(kind.__name__ == "APITimeoutError" for kind in type(below).__mro__):
            return True
        seen.append(below)
        below = getattr(below, "original_exception", None) or below.__cause__ or below.__context__
    return False


def import_litellm() -> ModuleType:
    """litellm with its habits off: fetching a price list, reading `.env` files, printing, logging messages."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    litellm = importlib.import_module("litellm")
    for name, value in {
        "telemetry": False,
        "suppress_debug_info": True,
        "set_verbose": False,
        "turn_off_message_logging": True,
    }.items():
        setattr(litellm, name, value)
    for logger in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(logger).disabled = True
    return litellm
